// Rating: one pair after another. The next pair is loaded while the rater watches this one.

import { Refused } from "./api.js";
import { Assignment } from "./assignment.js";
import { Player } from "./player.js";
import { Questions } from "./questions.js";
import { text } from "./text.js";

const STALL = 8_000; // milliseconds without a picture until the page offers to report the pair
const ENDED = Symbol("ended"); // in place of an assignment: there was none left
const MARGIN = 500; // milliseconds that a correction may take to reach the server

const $ = (id) => document.getElementById(id);

export class Rating {
  /**
   * @param {Api} api
   * @param {object} study as the server describes it
   * @param {(ending: object) => void} onEnd called when there are no more pairs
   */
  constructor(api, study, onEnd) {
    this.api = api;
    this.study = study;
    this.onEnd = onEnd;
    this.assignment = null; // on screen
    this.next = null; // promise of the next assignment, or of the ending
    this.waiting = null; // the assignment set aside while an earlier one is corrected, or ENDED
    this.sent = null; // {assignment, until}: the latest submission while it can be corrected
    this.answered = 0;
    this.busy = false;
    this.player = new Player($("stage"), (loops) => this.#seen(loops));
    this.questions = new Questions($("questions"), study.questions, () => this.#changed());
    $("answers").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("previous").addEventListener("click", () => this.questions.back());
    $("undo").addEventListener("click", () => this.undo());
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
      await this.api.returnPair({ assignment: this.assignment.token, reason, detail });
      Assignment.forget();
      await this.#advance();
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

  /** Show the next pair: the prepared one, unless it has expired or `fresh` is set. */
  async #advance(fresh = false) {
    const prepared = fresh ? null : await this.next;
    if (fresh) this.#discard(this.next);
    this.next = null;
    const usable = prepared instanceof Assignment && !prepared.expired;
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
    $("rating").hidden = false;
    $("stall").hidden = true;
    this.#complain("");
    $("prompt").textContent = assignment.prompt;
    this.#showProgress();
    this.questions.reset(assignment.answers);
    this.#showWatchNote();
    this.#play(assignment);
  }

  async #play(assignment) {
    const complain = () => ($("stall").hidden = this.assignment !== assignment);
    const stall = setTimeout(complain, STALL);
    try {
      await assignment.clips.ready;
    } catch {
      complain();
      return;
    } finally {
      clearTimeout(stall);
    }
    if (this.assignment !== assignment) return;
    $("stall").hidden = true;
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
    // A duplicate: another window of this rater has sent it, and may have moved on.
    await this.#advance(receipt.duplicate);
    if (!this.assignment) return;
    const progress = $("progress-text").textContent;
    announce(`${text("Answers saved.")} ${progress}. ${this.assignment.prompt}`);
  }

  /** Go back to the assignment that was set aside. */
  async #resume() {
    const assignment = this.waiting;
    this.waiting = null;
    if (assignment === ENDED || assignment.expired) await this.#advance(true);
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
      location.reload(); // the cookie has changed or is gone
      return;
    }
    announce(
      this.waiting
        ? text("The time to change your answers is over. Your first answers count.")
        : text("This pair is no longer open: its time is over, or it was answered elsewhere."),
    );
    this.waiting = null;
    this.sent = null;
    await this.#advance(true);
  }

  #seen(loops) {
    if (!this.assignment) return; // the loop ended while the pair was being replaced
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
      announce(text("The time to change your answers is over. Your first answers count."));
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
      announce(text("The time for this pair is over. Here is the next one."));
      await this.#work(() => this.#advance(true));
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
