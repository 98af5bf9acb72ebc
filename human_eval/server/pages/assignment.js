// One pair given to this rater: its clips, and the answers so far.

import { read, write } from "./browser_storage.js";
import { Clips } from "./player.js";

const DRAFT = "human-eval-draft"; // in sessionStorage: for this window only, survives a reload

export class Assignment {
  /**
   * @param {object} claimed the server's reply to a claim
   * @param {Api} api
   */
  constructor(claimed, api) {
    this.id = claimed.left; // equal whenever this rater is given the same pair again
    this.token = claimed.assignment;
    this.prompt = claimed.prompt;
    this.progress = claimed.progress;
    this.expires = Date.now() + 1000 * claimed.seconds_left;
    this.onProgress = () => {}; // called when a part of a clip has arrived
    const shares = [0, 0]; // of the clips that have arrived
    const load = (path, side) =>
      api.clip(path, (share) => {
        shares[side] = share;
        this.loaded = (shares[0] + shares[1]) / 2;
        this.onProgress();
      });
    this.loaded = 0; // fraction of both clips that has arrived
    const { width, height, fps, frames } = claimed;
    const contents = [load(claimed.left, 0), load(claimed.right, 1)];
    this.clips = new Clips({ width, height, fps, frames }, contents);
    this.revision = 0; // of the next submission
    this.stored = 0; // the revision that the server has
    this.loops = 0;
    this.answers = {};
    this.#restore();
  }

  get expired() {
    return Date.now() >= this.expires;
  }

  /** The body of a submission. */
  get body() {
    return {
      assignment: this.token,
      answers: this.answers,
      loops: Math.min(this.loops, 10_000),
      revision: this.revision,
    };
  }

  /** Keep loops and answers in case the page is reloaded. */
  save() {
    const { token, loops, answers } = this;
    write("sessionStorage", DRAFT, JSON.stringify({ token, loops, answers }));
  }

  /** Delete what `save` has kept. */
  static forget() {
    write("sessionStorage", DRAFT, null);
  }

  #restore() {
    const draft = JSON.parse(read("sessionStorage", DRAFT) ?? "null");
    if (draft?.token !== this.token) return;
    this.loops = draft.loops;
    this.answers = draft.answers;
  }
}
