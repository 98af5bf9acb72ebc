// A rater's turn at a pair: what the server handed out, its clips, and what was answered so far.

import { Clips } from "./player.js";

const DRAFT = "human-eval-draft"; // of this window alone: it outlives a reload

export class Turn {
  constructor(claimed, service) {
    this.ballot = claimed.ballot;
    this.prompt = claimed.prompt;
    this.progress = claimed.progress;
    this.expires = Date.now() + 1000 * claimed.seconds_left;
    const { width, height, fps, frames } = claimed;
    this.clips = new Clips({ width, height, fps, frames }, [
      service.clip(claimed.left),
      service.clip(claimed.right),
    ]);
    this.revision = 0; // of what is sent next
    this.stored = 0; // of what the server has
    this.loops = 0;
    this.answers = {};
    this.#restore();
  }

  get expired() {
    return Date.now() >= this.expires;
  }

  /** What is sent to the server. */
  get body() {
    return {
      ballot: this.ballot,
      answers: this.answers,
      loops: Math.min(this.loops, 10_000),
      revision: this.revision,
    };
  }

  /** Keep what was seen and answered, should the page be loaded again. */
  save() {
    const { ballot, loops, answers } = this;
    sessionStorage.setItem(DRAFT, JSON.stringify({ ballot, loops, answers }));
  }

  /** Nothing is left to keep. */
  static forget() {
    sessionStorage.removeItem(DRAFT);
  }

  #restore() {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
    if (draft?.ballot !== this.ballot) return;
    this.loops = draft.loops;
    this.answers = draft.answers;
  }
}
