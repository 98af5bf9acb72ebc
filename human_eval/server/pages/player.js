// Two videos in sync: the browser plays them, we start them together, correct their drift, and
// restart them together. The difference stays too small to see.

import { text } from "./text.js";

const NUDGE_FROM = 0.006; // seconds of drift at which the second video runs faster or slower
const NUDGE_UNTIL = 0.002; // seconds of drift at which it runs normally again
const NUDGE = 0.08; // fraction of the speed
const SPEEDS = [1, 0.5, 0.25];
const SEEN = 0.9; // fraction of a video that must be visible
const LOOK = 100; // milliseconds between two looks whether something covers a video
const POINTS = [0.05, 0.5, 0.95]; // of a video's width and height, looked at

/** The two clips of a pair; `ready` resolves when both can play to the end. */
export class Clips {
  /**
   * @param {{width: number, height: number, fps: number, frames: number}} shape of both clips
   * @param {Promise<Blob>[]} contents left, right
   */
  constructor(shape, contents) {
    this.shape = shape;
    this.videos = contents.map(() => makeVideo(shape));
    this.ready = Promise.all(contents.map((content, side) => load(this.videos[side], content)));
    this.ready.catch(() => {}); // the caller that shows the pair handles the failure
  }

  /** Free the memory. */
  discard() {
    for (const video of this.videos) {
      URL.revokeObjectURL(video.src);
      video.removeAttribute("src");
      video.remove();
    }
  }
}

function makeVideo({ width, height }) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", width, height });
  video.disablePictureInPicture = true;
  video.disableRemotePlayback = true;
  return video;
}

async function load(video, content) {
  const blob = await content;
  await new Promise((done, fail) => {
    video.addEventListener("canplaythrough", done, { once: true });
    video.addEventListener("error", () => fail(new Error("The video cannot be played.")), {
      once: true,
    });
    video.src = URL.createObjectURL(blob);
  });
}

/** Return whether nothing of the page, and no edge of what the rater sees of it, covers a box. */
function uncovered(box) {
  const { left, top, width, height } = box.getBoundingClientRect();
  const view = visualViewport; // smaller than the window where the rater has zoomed in by gesture
  const inside = (x, y) =>
    x >= view.offsetLeft &&
    y >= view.offsetTop &&
    x <= view.offsetLeft + view.width &&
    y <= view.offsetTop + view.height &&
    box.contains(document.elementFromPoint(x, y));
  return POINTS.every((x) => POINTS.every((y) => inside(left + x * width, top + y * height)));
}

function seeked(video, time) {
  return new Promise((done) => {
    video.addEventListener("seeked", done, { once: true });
    video.currentTime = time;
  });
}

export class Player {
  /**
   * @param {HTMLElement} stage contains the two `.screen` boxes and the buttons
   * @param {(loops: number, covered: boolean) => void} onLoop called after every loop with the
   *   number of those that were seen in full, and whether a video was covered in this one
   */
  constructor(stage, onLoop) {
    this.stage = stage;
    this.onLoop = onLoop;
    this.reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
    this.screens = [...stage.querySelectorAll(".screen")];
    this.counter = stage.querySelector("#counter");
    this.clips = null;
    this.playing = false;
    this.rewinding = false; // rewinding between two loops
    this.speed = 1;
    this.loops = 0;
    this.seenInFull = false; // this loop has been visible since its start
    this.covered = false; // a video was out of view since the start of this loop
    this.looked = 0; // when it was last looked whether one is
    this.frame = 0; // while paused
    this.visible = new Set();
    this.observed = false;
    this.#watch();
    const tick = () => {
      this.#tick();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  /** Show a pair whose clips are ready; `loops` of it have been seen before. */
  async show(clips, loops = 0) {
    this.pause();
    this.rewinding = false;
    this.clips = clips;
    this.loops = loops;
    clips.videos.forEach((video, side) => {
      video.setAttribute("aria-label", side ? text("Video 2") : text("Video 1"));
      this.screens[side].replaceChildren(video);
    });
    await this.#rewind();
    if (this.clips === clips && !this.reducedMotion.matches && !document.hidden) this.play();
  }

  play() {
    if (!this.clips || this.playing) return;
    const [first, second] = this.clips.videos;
    if (first.ended || second.ended) {
      this.replay();
      return;
    }
    this.#setPlaying(true);
    if (!this.rewinding) this.#start();
  }

  pause() {
    this.#setPlaying(false);
    if (!this.clips || this.rewinding) return;
    const [first, second] = this.clips.videos;
    first.pause();
    second.pause();
    second.currentTime = first.currentTime;
    this.frame = this.#frameAt(first.currentTime);
    this.#count(this.frame);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  /** Play from the first frame. */
  async replay() {
    if (!this.clips) return;
    const clips = this.clips;
    this.pause();
    await this.#rewind();
    if (this.clips === clips) this.play();
  }

  /** Step both videos by one frame. */
  step(by) {
    if (!this.clips) return;
    this.pause();
    const { fps, frames } = this.clips.shape;
    this.seenInFull = false;
    this.frame = (this.frame + by + frames) % frames;
    for (const video of this.clips.videos) video.currentTime = (this.frame + 0.5) / fps;
    this.#count(this.frame);
  }

  /** Switch to the next slower speed, or back to full speed. */
  changeSpeed() {
    this.speed = SPEEDS[(SPEEDS.indexOf(this.speed) + 1) % SPEEDS.length];
    if (this.clips) for (const video of this.clips.videos) video.playbackRate = this.speed;
    return this.speed;
  }

  #watch() {
    let wasPlaying = false;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        wasPlaying = this.playing;
        this.pause(); // so that the loop still counts as seen in full
      } else if (wasPlaying) {
        this.play();
      }
    });
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { target, intersectionRatio } of entries) {
          if (intersectionRatio >= SEEN) this.visible.add(target);
          else this.visible.delete(target);
        }
        this.observed = true;
      },
      { threshold: [0, SEEN, 1] },
    );
    for (const screen of this.screens) observer.observe(screen);
  }

  #start() {
    const clips = this.clips;
    for (const video of clips.videos) {
      video.playbackRate = this.speed;
      video.play().catch((problem) => {
        // The browser may require a click first. Other errors mean that we paused meanwhile.
        if (problem.name === "NotAllowedError" && this.clips === clips) this.pause();
      });
    }
  }

  async #rewind() {
    await Promise.all(this.clips.videos.map((video) => seeked(video, 0)));
    this.frame = 0;
    this.seenInFull = true;
    this.covered = false;
    this.#count(0);
  }

  #tick() {
    if (!this.clips || !this.playing || this.rewinding) return;
    const [first, second] = this.clips.videos;
    this.#look();
    if (first.ended && second.ended) {
      this.#restart();
      return;
    }
    this.#count(this.#frameAt(first.currentTime));
    if (first.ended || second.ended || first.seeking || second.seeking) return;
    this.#align(first, second, 0.5 / this.clips.shape.fps);
  }

  /** Notice when a video is out of view: scrolled away, cut off by a frame, or covered. */
  #look(now = performance.now()) {
    if (now - this.looked < LOOK) return;
    this.looked = now;
    const cut = this.observed && this.visible.size < 2; // an outer page's frame counts too
    if (!cut && this.screens.every(uncovered)) return;
    this.seenInFull = false;
    this.covered = true;
  }

  /** Correct the second video's drift: by its speed, or by a jump from half a frame on. */
  #align(first, second, half) {
    const drift = second.currentTime - first.currentTime;
    if (Math.abs(drift) > half) {
      second.currentTime = first.currentTime;
      return;
    }
    const rate = second.playbackRate / this.speed;
    const nudged = Math.abs(rate - 1) > NUDGE / 2;
    let wanted = 1;
    if (Math.abs(drift) > (nudged ? NUDGE_UNTIL : NUDGE_FROM)) {
      wanted = 1 - Math.sign(drift) * NUDGE;
    }
    if (Math.abs(rate - wanted) > NUDGE / 2) second.playbackRate = this.speed * wanted;
  }

  /** Count the finished loop and start the next one. */
  async #restart() {
    const clips = this.clips;
    this.rewinding = true;
    const seen = this.seenInFull && this.visible.size === 2 && !document.hidden;
    const covered = this.covered;
    await this.#rewind();
    if (this.clips !== clips) return;
    this.rewinding = false;
    if (seen) this.loops += 1;
    this.onLoop(this.loops, covered);
    // With reduced motion each loop is played on request.
    if (this.reducedMotion.matches) this.pause();
    else if (this.playing) this.#start();
  }

  #frameAt(time) {
    const { fps, frames } = this.clips.shape;
    return Math.min(frames - 1, Math.floor(time * fps + 0.01));
  }

  #count(frame) {
    const { frames } = this.clips.shape;
    const place = text("frame {number} of {count}", { number: frame + 1, count: frames });
    if (this.counter.textContent !== place) this.counter.textContent = place;
  }

  #setPlaying(playing) {
    this.playing = playing;
    this.stage.classList.toggle("playing", playing);
    const button = this.stage.querySelector("[data-do=toggle]");
    button.setAttribute("aria-label", playing ? text("Pause") : text("Play"));
  }
}
