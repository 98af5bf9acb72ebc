// The questions about a pair, answered one after another by mouse, touch or keyboard.

/** Return the value of a choice's button, such as "left", or "left-2" on a scale. */
function nameOf({ choice, strength }) {
  return strength ? `${choice}-${strength}` : choice;
}

export class Questions {
  /**
   * @param {HTMLElement} root container of the questions
   * @param {{key: string, wording: string, choices: {choice: string, strength: number,
   *   label: string}[]}[]} asked
   * @param {() => void} onChange called when an answer or the current question changes
   */
  constructor(root, asked, onChange) {
    this.asked = asked;
    this.onChange = onChange;
    this.answers = {};
    this.open = false;
    this.current = 0;
    this.since = 0;
    root.replaceChildren(...asked.map((question, place) => this.#build(question, place)));
    this.groups = [...root.children];
    root.addEventListener("change", ({ target }) => {
      // With arrow keys the rater tries answers out, so the current question stays the same.
      this.#take(target, target.matches(":focus-visible") ? 0 : 1);
    });
    root.addEventListener("focusin", (event) => {
      const place = this.groups.findIndex((group) => group.contains(event.target));
      if (place >= 0 && place !== this.current) this.#select(place);
    });
  }

  /** Start a new pair, or show the answers of an earlier one. */
  reset(answers = {}) {
    this.answers = structuredClone(answers);
    this.open = false;
    this.since = performance.now();
    for (const group of this.groups) {
      const { choice, strength = 0 } = this.answers[group.dataset.key] ?? {};
      for (const input of group.querySelectorAll("input")) {
        input.checked = choice !== undefined && input.value === nameOf({ choice, strength });
      }
    }
    this.#select(this.#firstOpen());
  }

  /** Allow answers. */
  unlock() {
    this.open = true;
    this.#select(this.current);
  }

  get complete() {
    return this.asked.every(({ key }) => key in this.answers);
  }

  /** Answer the current question with its n-th choice, from 0. */
  pick(number) {
    const input = this.groups[this.current].querySelectorAll("input")[number];
    if (!this.open || !input || input.matches(":disabled")) return;
    input.checked = true;
    const keyboardHere = this.groups[this.current].contains(document.activeElement);
    this.#take(input, 1);
    if (keyboardHere) this.focus();
  }

  /** Go back to the previous question. */
  back() {
    if (this.current > 0) this.#select(this.current - 1);
  }

  /** Move the keyboard focus to the current question. */
  focus() {
    const inputs = [...this.groups[this.current].querySelectorAll("input")];
    (inputs.find((input) => input.checked) ?? inputs[0]).focus({ preventScroll: true });
  }

  #build({ key, wording, choices }, place) {
    const group = document.createElement("fieldset");
    group.dataset.key = key;
    group.disabled = true;
    const legend = document.createElement("legend");
    legend.textContent = wording;
    legend.dir = "auto";
    const row = document.createElement("div");
    row.className = choices.length === 5 ? "choices scale" : "choices";
    row.append(...choices.map((choice, number) => this.#button(choice, number, place)));
    group.append(legend, row);
    return group;
  }

  #button(choice, number, place) {
    const label = document.createElement("label");
    label.className = "choice";
    const input = document.createElement("input");
    Object.assign(input, { type: "radio", name: `question-${place}`, value: nameOf(choice) });
    const name = document.createElement("span");
    name.textContent = choice.label;
    name.dir = "auto";
    const key = document.createElement("kbd");
    key.textContent = number + 1;
    key.setAttribute("aria-hidden", "true");
    label.append(input, name, key);
    return label;
  }

  #take(input, onward) {
    const place = this.groups.findIndex((group) => group.contains(input));
    const seconds = (performance.now() - this.since) / 1000;
    const { key, choices } = this.asked[place];
    const { choice, strength } = choices.find((offered) => nameOf(offered) === input.value);
    this.answers[key] = { choice, strength, seconds };
    this.#select(Math.min(place + onward, this.groups.length - 1));
  }

  #firstOpen() {
    const place = this.asked.findIndex(({ key }) => !(key in this.answers));
    return place < 0 ? this.asked.length - 1 : place;
  }

  #select(place) {
    this.current = place;
    const reached = this.#firstOpen();
    this.groups.forEach((group, number) => {
      group.disabled = !this.open || number > reached;
      group.classList.toggle("current", number === place);
      group.classList.toggle("answered", this.asked[number].key in this.answers);
    });
    this.onChange();
  }
}
