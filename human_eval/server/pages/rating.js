// Rating: one pair after another. The next pair is loaded while the rater watches this one.

import { Refused } from "./api.js";
import { Assignment } from "./assignment.js";
import { PROBLEM, write } from "./browser_storage.js";
import { Layout } from "./layout.js";
import { Player } from "./player.js";
import { Questions } from "./questions.js";
import { text } from "./text.js";

const STALL = 10_000; // milliseconds without progress until the page offers to report the pair
const SLOW = 500; // milliseconds until the page shows that the clips are loading
const ENDED = Symbol("ended"); // in place of an assignment: there was none left
const CLOSED = 410; // the status of a request to a study that takes no more answers
const MARGIN = 500; // milliseconds that a correction may take to reach the server

const $ = (id) => document.getElementById(id);

export class Rating {
  /**
   * @param {Api} api
   * @param {object} study as the server describes it
   * @param {() => void} onShow called before a pair is shown while another part of the page is
   * @param {(ending: object) => void} onEnd called when there are no more pairs
   */
  constructor(api, study, onShow, onEnd) {
    this.api = api;
    this.study = study;
    this.onShow = onShow;
    this.onEnd = onEnd;
    this.assignment = null; // on screen
    this.next = null; // promise of the next assignment, or of the ending
    this.waiting = null; // the assignment set aside while an earlier one is corrected, or ENDED
    this.sent = null; // {assignment, until}: the latest submission while it can be corrected
    this.answered = 0;
    this.busy = false;
    this.layout = new Layout();
    this.player = new Player($("stage"), (loops, covered) => this.#seen(loops, covered));
    this.questions = new Questions($("questions"), study.questions, () => this.#changed());
    $("answers").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("previous").addEventListener("click", () => this.questions.back());
    $("undo").addEventListener("click", () => this.undo());
    $("notice-close").addEventListener("click", () => {
      this.notify("");
      $("prompt").focus({ preventScroll: true }); // the hidden button must not take the next Enter
    });
    setInterval(() => this.#showUndo(), 250);
  }

  /** Show the rater's current pair. */
  async begin() {
    this.waiting = null;
    this.#discard(this.next);
    this.next = null;
    const assignment = await this.#prepare(false);
    if (!(assignment instanceof Assignment)) {
      this.onEnd(assignment);
      return;
    }
    this.answered = assignment.progress.answered;
    this.#show(assignment);
  }

  /** Send the answers, then show the next pair. */
  submit() {
    const assignment = this.assignment;
    if (this.busy || !assignment || !this.questions.open) return;
    if (!this.questions.complete) {
      this.#complain(text("Please answer every question first."));
      this.questions.focus();
      return;
    }
    performance.mark("pair-sent");
    this.#work(async () => {
      assignment.answers = this.questions.answers;
      assignment.save();
      const receipt = await this.api.submit(assignment.body);
      performance.mark("pair-stored");
      await this.#stored(assignment, receipt);
    });
  }

  /** Return the pair unanswered, for a reason such as "broken/not_playing". */
  skip(why) {
    if (this.busy || !this.assignment) return;
    const [reason, detail] = why.split("/");
    this.#work(async () => {
      if (this.waiting) {
        await this.#resume(); // an answered pair cannot be returned
        return;
      }
      const body = { assignment: this.assignment.token, reason, detail };
      const returned = await this.api.returnPair(body);
      Assignment.forget();
      this.notify("");
      await this.#advance(returned.next);
    });
  }

  /** Show the latest submission again, to correct it. */
  undo() {
    if (this.busy || this.waiting || !this.sent || Date.now() >= this.sent.until) return;
    this.waiting = this.assignment ?? ENDED;
    if (this.assignment) this.assignment.answers = structuredClone(this.questions.answers);
    const { assignment } = this.sent;
    assignment.revision = assignment.stored + 1;
    this.#show(assignment);
    announce(text("You can change your previous answers now. Then send them again."));
  }

  /**
   * Stop: another part of the page is shown.
   * @param {boolean} changeable the latest submission can still be corrected
   */
  halt(changeable) {
    this.player.pause();
    if (!changeable) this.sent = null;
    if (this.assignment !== this.sent?.assignment) this.assignment?.clips.discard();
    this.assignment = null;
    this.waiting = null;
    clearTimeout(this.clock);
    Assignment.forget();
  }

  /** Run one job at a time, and handle its refusal. */
  async #work(job) {
    this.#setBusy(true);
    try {
      await job();
    } catch (problem) {
      await this.#refused(problem);
    } finally {
      this.#setBusy(false);
    }
  }

  async #prepare(ahead) {
    const claimed = await this.api.claim(ahead);
    return claimed.assignment === null ? claimed : new Assignment(claimed, this.api);
  }

  /**
   * Show the next pair.
   * @param {string | null} current token of the pair that the server now counts as the rater's:
   *   the prepared one, unless another rater was given it in the meantime
   */
  async #advance(current = null) {
    const prepared = current && (await this.next);
    const usable = prepared instanceof Assignment && prepared.token === current;
    if (!usable) this.#discard(this.next);
    this.next = null;
    const assignment = usable ? prepared : await this.#prepare(false);
    if (!(assignment instanceof Assignment)) {
      this.onEnd(assignment);
      return;
    }
    if (!usable) this.answered = assignment.progress.answered;
    this.#show(assignment);
  }

  /** Show an assignment at once; its clips play when they are loaded. */
  #show(assignment) {
    const before = this.assignment;
    this.assignment = assignment;
    const needed = [null, this.waiting, this.sent?.assignment];
    if (!needed.includes(before)) before.clips.discard();
    if ($("rating").hidden) this.onShow();
    this.#showLoading(false);
    this.#complain("");
    this.#showProgress();
    this.questions.reset(assignment.answers);
    this.#showWatchNote();
    this.layout.show(assignment.prompt, assignment.clips.shape);
    this.#play(assignment);
  }

  async #play(assignment) {
    if (!(await this.#load(assignment)) || this.assignment !== assignment) return;
    await this.player.show(assignment.clips, assignment.loops);
    if (this.assignment !== assignment) return;
    performance.mark("pair-shown");
    $("prompt").focus({ preventScroll: true });
    scrollTo(0, 0);
    this.questions.since = performance.now();
    if (assignment.loops >= this.study.min_loops) this.#open();
    this.#watchClock(assignment);
    if (!this.waiting) this.#lookAhead();
  }

  /** Wait until a pair's clips can play, and show how far they are; return whether they can. */
  async #load(assignment) {
    let stall;
    const show = (stalled) =>
      this.assignment === assignment && this.#showLoading(assignment.loaded < 1, stalled);
    assignment.onProgress = () => {
      if (!$("loading").hidden || !$("stall").hidden) show(false);
      clearTimeout(stall);
      stall = setTimeout(() => show(true), STALL);
    };
    assignment.onProgress();
    const slow = setTimeout(() => show(false), SLOW);
    try {
      await assignment.clips.ready;
      if (this.assignment === assignment) this.#showLoading(false);
      return true;
    } catch {
      show(true);
      return false;
    } finally {
      assignment.onProgress = () => {};
      clearTimeout(slow);
      clearTimeout(stall);
    }
  }

  #showLoading(loading, stalled = false) {
    $("loading").hidden = !loading;
    $("watch-note").hidden = loading;
    $("loaded").value = this.assignment.loaded;
    if ($("stall").hidden !== stalled) return;
    $("stall").hidden = !stalled;
    this.layout.fit();
  }

  /** Tell the rater something in a place that is seen, and to users of screen readers. */
  notify(notice) {
    if (notice) announce(notice);
    $("notice-text").textContent = notice;
    $("notice").hidden = !notice;
    this.layout.fit();
  }

  #lookAhead() {
    this.next ??= this.#prepare(true).catch((problem) => {
      if (problem instanceof Refused) return null; // it is claimed again when it is needed
      throw problem;
    });
  }

  async #stored(assignment, receipt) {
    Assignment.forget();
    assignment.stored = receipt.revision;
    if (this.waiting) {
      await this.#resume();
      return;
    }
    if (!receipt.duplicate) this.answered += 1;
    if (this.sent && this.sent.assignment !== assignment) this.sent.assignment.clips.discard();
    const until = Date.now() + 1000 * receipt.undo_seconds - MARGIN;
    this.sent = receipt.undo_seconds ? { assignment, until } : null;
    this.notify("");
    // A duplicate: another window of this rater has sent it, and may have moved on.
    await this.#advance(receipt.duplicate ? null : receipt.next);
    if (!this.assignment) return;
    const progress = $("progress-text").textContent;
    announce(`${text("Answers saved.")} ${progress}. ${this.assignment.prompt}`);
  }

  /** Go back to the assignment that was set aside. */
  async #resume() {
    const assignment = this.waiting;
    this.waiting = null;
    if (assignment === ENDED || assignment.expired) await this.#advance();
    else this.#show(assignment);
  }

  async #refused(problem) {
    if (!(problem instanceof Refused)) throw problem;
    if (problem.status === 422) {
      this.#complain(problem.message);
      return;
    }
    Assignment.forget();
    if (problem.status === 403) {
      write("sessionStorage", PROBLEM, problem.message);
      location.reload(); // the cookie has changed or is gone
      return;
    }
    const reason = this.waiting
      ? text("The time to change your answers is over. Your first answers count.")
      : text("This pair is no longer open: its time is over, or it was answered elsewhere.");
    this.notify(problem.status === CLOSED ? problem.message : reason);
    this.waiting = null;
    this.sent = null;
    await this.#advance();
  }

  #seen(loops, covered) {
    if (!this.assignment) return; // the loop ended while the pair was being replaced
    if (covered && !this.questions.open) {
      $("watch-note").textContent = text(
        "This time does not count: both videos must be in full view until they end.",
      );
      this.layout.fit();
      return;
    }
    this.assignment.loops = loops;
    this.assignment.save();
    if (loops >= this.study.min_loops && !this.questions.open) this.#open();
    else if (!this.questions.open) this.#showWatchNote();
  }

  #open() {
    this.questions.unlock();
    this.#showWatchNote();
  }

  #changed() {
    if (!this.assignment) return;
    if (this.questions.open) {
      this.assignment.answers = this.questions.answers;
      this.assignment.save();
    }
    this.#complain("");
    this.#showButtons();
  }

  #showButtons() {
    $("submit").disabled = this.busy || !this.questions.open || !this.questions.complete;
    $("previous").hidden = this.questions.current === 0;
  }

  #showWatchNote() {
    const wanted = this.study.min_loops;
    const done = this.assignment.loops;
    $("watch-note").textContent = this.questions.open
      ? text("You can answer now.")
      : wanted > 1
        ? text("To answer, watch both videos to the end, {wanted} times ({done} of {wanted} done).", {
            wanted,
            done,
          })
        : text("To answer, watch both videos to the end.");
    $("watch-note").classList.toggle("open", this.questions.open);
  }

  #showProgress() {
    const { wanted } = this.study;
    const bar = $("progress");
    bar.hidden = !wanted;
    if (wanted) {
      bar.max = wanted;
      bar.value = this.answered;
      const number = Math.min(this.answered + 1, wanted);
      $("progress-text").textContent = text("Pair {number} of {wanted}", { number, wanted });
    } else {
      $("progress-text").textContent = text("Pair {number}", { number: this.answered + 1 });
    }
  }

  #showUndo() {
    const left = this.sent ? Math.ceil((this.sent.until - Date.now()) / 1000) : 0;
    if (left <= 0 && this.waiting && !this.busy) {
      this.notify(text("The time to change your answers is over. Your first answers count."));
      this.#work(() => this.#resume());
    }
    $("undo-bar").hidden = left <= 0;
    $("undo-last").hidden = left <= 0;
    if (left <= 0) return;
    $("undo").hidden = this.waiting !== null;
    $("undo-text").textContent = this.waiting
      ? text("You are changing your previous answers.")
      : text("Answers saved.");
    $("undo-left").textContent = text("{seconds} s", { seconds: left });
  }

  #watchClock(assignment) {
    clearTimeout(this.clock);
    if (this.waiting) return;
    const left = Math.min(assignment.expires - Date.now(), 2 ** 31 - 1);
    this.clock = setTimeout(async () => {
      if (this.assignment !== assignment || this.busy) return;
      Assignment.forget();
      await this.#work(() => this.#advance());
      if (!this.assignment) return;
      this.notify(
        this.assignment.id === assignment.id
          ? text("The time for the pair was over. Please watch it again.")
          : text("The time for the pair was over. This is another one."),
      );
    }, left);
  }

  #setBusy(busy) {
    this.busy = busy;
    $("rating").setAttribute("aria-busy", busy);
    this.#showButtons();
  }

  #complain(text) {
    $("answers-problem").textContent = text;
  }

  async #discard(promised) {
    const assignment = await promised;
    if (!(assignment instanceof Assignment) || assignment === this.assignment) return;
    assignment.clips.discard();
  }
}

/** Announce a text to users of screen readers. */
export function announce(text) {
  $("announce").textContent = text;
}
