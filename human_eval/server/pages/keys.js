// Single-key shortcuts: off inside text, dialogs and on buttons that have a use for the key.

import { anyDialogOpen } from "./dialogs.js";

const STORED = "human-eval-shortcuts";

export class Shortcuts {
  /**
   * @param {HTMLInputElement} choice the box that switches them on and off
   * @param {Record<string, () => void>} actions by the key's value in lower case
   */
  constructor(choice, actions) {
    this.choice = choice;
    this.actions = actions;
    choice.checked = localStorage.getItem(STORED) !== "off";
    choice.addEventListener("change", () => {
      localStorage.setItem(STORED, choice.checked ? "on" : "off");
      this.#show();
    });
    this.#show();
    addEventListener("keydown", (event) => this.#press(event));
  }

  #show() {
    document.documentElement.classList.toggle("no-shortcuts", !this.choice.checked);
  }

  #press(event) {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!this.choice.checked || anyDialogOpen()) return;
    const action = this.actions[event.key.toLowerCase()];
    if (!action || isBusy(event.target, event.key)) return;
    event.preventDefault();
    action();
  }
}

/** Say whether the focused element needs the key itself. */
function isBusy(target, key) {
  if (target.matches("textarea, select, input:not([type=radio], [type=checkbox])")) return true;
  if (target.matches("[type=radio]")) return key === " " && !target.checked;
  return (key === " " || key === "Enter") && target.matches("button, a, summary, [type=checkbox]");
}
