// Rating: one pair after the other, the next one loaded while this one is watched.

import { Player } from "./player.js";
import { Questions } from "./questions.js";
import { Refused } from "./service.js";
import { Turn } from "./turn.js";

const STALL = 8_000; // milliseconds without a picture, after which the page offers to report it
const ENDED = Symbol("ended"); // no turn was put aside: there was none left
const MARGIN = 500; // milliseconds that an undo may take on its way

const $ = (id) => document.getElementById(id);

export class Rating {
  /**
   * @param {Service} service
   * @param {object} study as the server describes it
   * @param {(ending: object) => void} onEnd told how it ends
   */
  constructor(service, study, onEnd) {
    this.service = service;
    this.study = study;
    this.onEnd = onEnd;
    this.turn = null; // on the screen
    this.next = null; // promise of the following turn, or of how it ends
    this.waiting = null; // the turn put aside while an earlier one is changed, or ENDED
    this.sent = null; // {turn, until} that can still be changed
    this.answered = 0;
    this.busy = false;
    this.player = new Player($("stage"), (loops) => this.#seen(loops));
    this.questions = new Questions($("questions"), study.questions, () => this.#changed());
    $("ballot").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("previous").addEventListener("click", () => this.questions.back());
    $("undo").addEventListener("click", () => this.undo());
    setInterval(() => this.#showUndo(), 250);
  }

  /** Show the pair that is this rater's now. */
  async begin() {
    this.waiting = null;
    this.#discard(this.next);
    this.next = null;
    const turn = await this.#prepare(false);
    if (!(turn instanceof Turn)) {
      this.onEnd(turn);
      return;
    }
    this.answered = turn.progress.answered;
    this.#show(turn);
  }

  /** Send the answers; the next pair comes when they are stored. */
  submit() {
    const turn = this.turn;
    if (this.busy || !turn || !this.questions.open) return;
    if (!this.questions.complete) {
      this.#complain("Answer every question first.");
      this.questions.focus();
      return;
    }
    performance.mark("pair-sent");
    this.#work(async () => {
      turn.answers = this.questions.answers;
      turn.save();
      const receipt = await this.service.submit(turn.body);
      performance.mark("pair-stored");
      await this.#stored(turn, receipt);
    });
  }

  /** Hand the pair back, for a reason such as "broken/not_playing". */
  skip(why) {
    if (this.busy || !this.turn) return;
    const [reason, detail] = why.split("/");
    this.#work(async () => {
      if (this.waiting) {
        await this.#resume(); // an answered pair cannot be handed back
        return;
      }
      await this.service.giveBack({ ballot: this.turn.ballot, reason, detail });
      Turn.forget();
      await this.#advance();
    });
  }

  /** Bring the answers just sent back, to change them. */
  undo() {
    if (this.busy || this.waiting || !this.sent || Date.now() >= this.sent.until) return;
    this.waiting = this.turn ?? ENDED;
    if (this.turn) this.turn.answers = structuredClone(this.questions.answers);
    const { turn } = this.sent;
    turn.revision = turn.stored + 1;
    this.#show(turn);
    announce("Your previous answers are back. Change them and send them again.");
  }

  /**
   * Leave the pair alone: another part of the page has taken over.
   * @param {boolean} changeable the answers just sent can still be changed
   */
  halt(changeable) {
    this.player.pause();
    if (!changeable) this.sent = null;
    if (this.turn !== this.sent?.turn) this.turn?.clips.discard();
    this.turn = null;
    this.waiting = null;
    clearTimeout(this.clock);
    Turn.forget();
  }

  /** Do one thing at a time, and say what comes of a refusal. */
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
    const claimed = await this.service.claim(ahead);
    return claimed.ballot === null ? claimed : new Turn(claimed, this.service);
  }

  /** Show what follows; a turn that was prepared meanwhile, if it is still ours. */
  async #advance(fresh = false) {
    const prepared = fresh ? null : await this.next;
    if (fresh) this.#discard(this.next);
    this.next = null;
    const usable = prepared instanceof Turn && !prepared.expired;
    const turn = usable ? prepared : await this.#prepare(false);
    if (!(turn instanceof Turn)) {
      this.onEnd(turn);
      return;
    }
    if (!usable) this.answered = turn.progress.answered;
    this.#show(turn);
  }

  /** Put a turn on the screen at once; its clips play when they are there. */
  #show(turn) {
    const before = this.turn;
    this.turn = turn;
    if (before && before !== this.waiting && before !== this.sent?.turn) before.clips.discard();
    $("rating").hidden = false;
    $("stall").hidden = true;
    this.#complain("");
    $("prompt").textContent = turn.prompt;
    this.#showProgress();
    this.questions.reset(turn.answers);
    this.#showGate();
    this.#play(turn);
  }

  async #play(turn) {
    const complain = () => ($("stall").hidden = this.turn !== turn);
    const stall = setTimeout(complain, STALL);
    try {
      await turn.clips.ready;
    } catch {
      complain();
      return;
    } finally {
      clearTimeout(stall);
    }
    if (this.turn !== turn) return;
    $("stall").hidden = true;
    await this.player.show(turn.clips, turn.loops);
    if (this.turn !== turn) return;
    performance.mark("pair-shown");
    $("prompt").focus({ preventScroll: true });
    scrollTo(0, 0);
    this.questions.since = performance.now();
    if (turn.loops >= this.study.min_loops) this.#open();
    this.#watchClock(turn);
    if (!this.waiting) this.#lookAhead();
  }

  #lookAhead() {
    this.next ??= this.#prepare(true).catch((problem) => {
      if (problem instanceof Refused) return null; // it is asked for again when it is needed
      throw problem;
    });
  }

  async #stored(turn, receipt) {
    Turn.forget();
    turn.stored = receipt.revision;
    if (this.waiting) {
      await this.#resume();
      return;
    }
    if (!receipt.duplicate) this.answered += 1;
    if (this.sent && this.sent.turn !== turn) this.sent.turn.clips.discard();
    const until = Date.now() + 1000 * receipt.undo_seconds - MARGIN;
    this.sent = receipt.undo_seconds ? { turn, until } : null;
    // Stored before: another window of this rater was here, and may have gone on.
    await this.#advance(receipt.duplicate);
    if (this.turn) announce(`Stored. ${$("progress-text").textContent}. ${this.turn.prompt}`);
  }

  /** Go back to the turn that was put aside. */
  async #resume() {
    const turn = this.waiting;
    this.waiting = null;
    if (turn === ENDED || turn.expired) await this.#advance(true);
    else this.#show(turn);
  }

  async #refused(problem) {
    if (!(problem instanceof Refused)) throw problem;
    if (problem.status === 422) {
      this.#complain(problem.message);
      return;
    }
    Turn.forget();
    if (problem.status === 403) {
      location.reload(); // this browser is somebody else by now, or nobody
      return;
    }
    announce(
      this.waiting
        ? "The time to change your answers is over. What you sent first counts."
        : "This pair is no longer open: its time is over, or it was answered in another window.",
    );
    this.waiting = null;
    this.sent = null;
    await this.#advance(true);
  }

  #seen(loops) {
    this.turn.loops = loops;
    this.turn.save();
    if (loops >= this.study.min_loops && !this.questions.open) this.#open();
    else if (!this.questions.open) this.#showGate();
  }

  #open() {
    this.questions.unlock();
    this.#showGate();
  }

  #changed() {
    if (!this.turn) return;
    if (this.questions.open) {
      this.turn.answers = this.questions.answers;
      this.turn.save();
    }
    this.#complain("");
    this.#showButtons();
  }

  #showButtons() {
    $("submit").disabled = this.busy || !this.questions.open || !this.questions.complete;
    $("previous").hidden = this.questions.marked === 0;
  }

  #showGate() {
    const wanted = this.study.min_loops;
    const left = `${this.turn.loops} of ${wanted}`;
    const times = wanted > 1 ? `${wanted} times` : "once";
    $("gate").textContent = this.questions.open
      ? "You can answer now."
      : `Watch both videos to the end ${times}, then you can answer: ${left}.`;
    $("gate").classList.toggle("open", this.questions.open);
  }

  #showProgress() {
    const { wanted } = this.study;
    const bar = $("progress");
    bar.hidden = !wanted;
    if (wanted) {
      bar.max = wanted;
      bar.value = this.answered;
      $("progress-text").textContent = `Pair ${Math.min(this.answered + 1, wanted)} of ${wanted}`;
    } else {
      $("progress-text").textContent = `Pair ${this.answered + 1}`;
    }
  }

  #showUndo() {
    const left = this.sent ? Math.ceil((this.sent.until - Date.now()) / 1000) : 0;
    if (left <= 0 && this.waiting && !this.busy) {
      announce("The time to change your answers is over. What you sent first counts.");
      this.#work(() => this.#resume());
    }
    $("undo-bar").hidden = left <= 0;
    $("undo-last").hidden = left <= 0;
    if (left <= 0) return;
    $("undo").hidden = this.waiting !== null;
    $("undo-text").textContent = this.waiting
      ? "You are changing your previous answers."
      : "Your answers are stored.";
    $("undo-left").textContent = `${left} s`;
  }

  #watchClock(turn) {
    clearTimeout(this.clock);
    if (this.waiting) return;
    const left = Math.min(turn.expires - Date.now(), 2 ** 31 - 1);
    this.clock = setTimeout(async () => {
      if (this.turn !== turn || this.busy) return;
      announce("The time for this pair is over. Here is one to answer now.");
      await this.#work(() => this.#advance(true));
    }, left);
  }

  #setBusy(busy) {
    this.busy = busy;
    $("rating").setAttribute("aria-busy", busy);
    this.#showButtons();
  }

  #complain(text) {
    $("ballot-problem").textContent = text;
  }

  async #discard(promised) {
    const turn = await promised;
    if (turn instanceof Turn && turn !== this.turn) turn.clips.discard();
  }
}

/** Say it to those who listen to the page. */
export function announce(text) {
  $("announce").textContent = text;
}
