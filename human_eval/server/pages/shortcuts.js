// Single-key shortcuts. They are off in text fields, in dialogs, and on controls that use the key.

import { read, write } from "./browser_storage.js";
import { anyDialogOpen } from "./dialogs.js";

const STORED = "human-eval-shortcuts";

export class Shortcuts {
  /**
   * @param {HTMLInputElement} choice the checkbox that turns them on and off
   * @param {Record<string, () => void>} actions by the key's character in lower case
   */
  constructor(choice, actions) {
    this.choice = choice;
    this.actions = actions;
    choice.checked = read("localStorage", STORED) !== "off";
    choice.addEventListener("change", () => {
      write("localStorage", STORED, choice.checked ? "on" : "off");
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
    const action = this.actions[characterOf(event)];
    if (!action || usesKey(event.target, event.key)) return;
    event.preventDefault();
    action();
  }
}

// What is printed on a key beside the letters of another script.
const ELSEWHERE = { Comma: ",", Period: ".", Slash: "?" };

/**
 * Return the character of a key in lower case. On a layout of another script (Arabic, Japanese kana)
 * and on a row of digits that needs Shift (French), it is the one in the same place of a Latin one.
 */
function characterOf({ key, code, shiftKey }) {
  const [, letter, digit] = /^(?:Key([A-Z])|Digit([0-9]))$/.exec(code) ?? [];
  if (digit && !shiftKey) return digit;
  const latin = (key.length > 1 && key !== "Process") || /[\x20-\x7e]/.test(key);
  return (latin ? key : (letter ?? ELSEWHERE[code] ?? key)).toLowerCase();
}

/** Return whether the focused element uses the key itself. */
function usesKey(target, key) {
  if (target.matches("textarea, select, input:not([type=radio], [type=checkbox])")) return true;
  if (target.matches("[type=radio]")) return key === " " && !target.checked;
  return (key === " " || key === "Enter") && target.matches("button, a, summary, [type=checkbox]");
}
