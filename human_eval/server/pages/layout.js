// Where the videos, the questions and the prompt stand: the videos are as large as the window
// allows, everything else stays in view beside or below them, and nothing covers anything.

import { text } from "./text.js";

const SMALL = 128; // pixels; clips up to this size are enlarged by whole factors
const ALL_AT_ONCE = 0.8; // videos may be so much smaller in order to show every question
const READABLE = 96; // pixels; if the longer side would be shorter, the page scrolls instead
const MUCH = 1.25; // videos are stacked only if that makes them so much larger

const $ = (id) => document.getElementById(id);

export class Layout {
  constructor() {
    this.shape = null; // {width, height} of the clips in pixels
    addEventListener("resize", () => this.fit());
    $("unfold").addEventListener("click", () => {
      this.#fold(!$("rating").classList.contains("folded"));
      this.fit();
    });
  }

  /** Show a pair's prompt, folded if it is long, and make room for its clips. */
  show(prompt, shape) {
    $("prompt").textContent = prompt;
    this.#fold(true);
    this.shape = shape;
    this.fit();
  }

  /** Choose the arrangement and the size of the videos. */
  fit() {
    if (!this.shape || $("rating").hidden) return;
    const { scrollHeight, clientHeight } = $("prompt");
    const folded = $("rating").classList.contains("folded");
    if (folded) $("unfold").hidden = scrollHeight <= clientHeight + 2;
    const found = $("stage").classList.contains("large") ? [this.#large()] : this.#arrangements();
    const best = choose(found.filter((one) => this.#longest(one) >= READABLE));
    this.#apply(best ?? this.#scrolling());
  }

  /** Measure every arrangement in which the questions are in view without scrolling. */
  #arrangements() {
    const found = [];
    const passing = [$("undo-bar"), $("previous")].filter((part) => part.hidden);
    for (const part of passing) part.hidden = false; // room for what comes and goes
    for (const oneQuestion of [false, true]) {
      for (const beside of [false, true]) {
        this.#apply({ oneQuestion, beside, stacked: false, scale: 0 });
        const bottom = innerHeight - parseFloat(getComputedStyle(document.body).paddingBottom);
        const answers = bottom - scrollY - $("answers").getBoundingClientRect().bottom;
        const stage = bottom - scrollY - $("stage").getBoundingClientRect().bottom;
        if (answers < 0) continue;
        const fitted = this.#fitVideos(beside ? stage : answers);
        found.push({ oneQuestion, beside, ...fitted });
      }
    }
    for (const part of passing) part.hidden = true;
    return found;
  }

  #large() {
    this.#apply({ oneQuestion: false, beside: false, stacked: false, scale: 0 });
    const rest = $("stage").querySelector(".transport").getBoundingClientRect().bottom;
    const top = $("stage").querySelector(".videos").getBoundingClientRect().top;
    const fitted = this.#fitVideos(innerHeight - (rest - top) - 26);
    return { oneQuestion: false, beside: false, ...fitted };
  }

  /** Nothing fits: let the page scroll, but only as far as both videos are in view at once. */
  #scrolling() {
    this.#apply({ oneQuestion: true, beside: false, stacked: false, scale: 0 });
    const caption = $("left").getBoundingClientRect().height;
    return { oneQuestion: true, beside: false, ...this.#fitVideos(innerHeight - caption - 8) };
  }

  /** Side by side or stacked: which shows larger videos in this height? They have no size yet. */
  #fitVideos(height) {
    const videos = $("stage").querySelector(".videos");
    const gap = parseFloat(getComputedStyle(videos).columnGap);
    const caption = $("left").getBoundingClientRect().height;
    const width = $("stage").clientWidth;
    const row = this.#scaleFor((width - gap) / 2, height);
    const column = this.#scaleFor(width, (height - caption - gap) / 2);
    const stacked = column > MUCH * row;
    return { stacked, scale: stacked ? column : row };
  }

  #fold(folded) {
    $("rating").classList.toggle("folded", folded);
    $("unfold").setAttribute("aria-expanded", !folded);
    $("unfold").textContent = folded ? text("Show the whole text") : text("Show less");
  }

  #scaleFor(width, height) {
    const scale = Math.max(0, Math.min(width / this.shape.width, height / this.shape.height));
    const factor = Math.floor(scale * devicePixelRatio);
    return this.#small && factor >= 1 ? factor / devicePixelRatio : scale;
  }

  get #small() {
    return Math.max(this.shape.width, this.shape.height) <= SMALL;
  }

  #longest({ scale }) {
    return scale * Math.max(this.shape.width, this.shape.height);
  }

  #apply({ oneQuestion, beside, stacked, scale }) {
    $("rating").classList.toggle("one-question", oneQuestion);
    $("rating").classList.toggle("beside", beside);
    $("stage").classList.toggle("stacked", stacked);
    $("stage").classList.toggle("whole-pixels", this.#small);
    $("stage").style.setProperty("--video-width", `${scale * this.shape.width}px`);
    $("stage").style.setProperty("--video-height", `${scale * this.shape.height}px`);
  }
}

/** Choose the largest videos, but rather with all questions at once than a little larger. */
function choose(arrangements) {
  const largest = (found) =>
    found.reduce((best, one) => (best && best.scale >= one.scale ? best : one), undefined);
  const all = largest(arrangements.filter(({ oneQuestion }) => !oneQuestion));
  const best = largest(arrangements);
  return all && all.scale >= ALL_AT_ONCE * best.scale ? all : best;
}
