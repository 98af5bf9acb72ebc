// Two videos on one clock. They are played by the browser, started together, kept together, and
// sent back to the start together, so that neither side is ever ahead by what an eye can see.

const NUDGE_FROM = 0.006; // seconds apart, from which the second one runs a little faster or slower
const NUDGE_UNTIL = 0.002;
const NUDGE = 0.08; // share of the speed
const SPEEDS = [1, 0.5, 0.25];
const SEEN = 0.6; // share of a video that must be on the screen

/** A pair's clips, loaded; `ready` tells when both can be played to the end. */
export class Clips {
  /**
   * @param {{width: number, height: number, fps: number, frames: number}} shape of either clip
   * @param {Promise<Blob>[]} contents left, right
   */
  constructor(shape, contents) {
    this.shape = shape;
    this.videos = contents.map(() => makeVideo(shape));
    this.ready = Promise.all(contents.map((content, side) => load(this.videos[side], content)));
    this.ready.catch(() => {}); // whoever shows the pair hears of it
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

function seeked(video, time) {
  return new Promise((done) => {
    video.addEventListener("seeked", done, { once: true });
    video.currentTime = time;
  });
}

export class Player {
  /**
   * @param {HTMLElement} stage holds the two `.glass` and the buttons
   * @param {(loops: number) => void} onLoop told after every loop that was seen whole
   */
  constructor(stage, onLoop) {
    this.stage = stage;
    this.onLoop = onLoop;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.glasses = [...stage.querySelectorAll(".glass")];
    this.counter = stage.querySelector("#counter");
    this.clips = null;
    this.playing = false;
    this.turning = false; // between the end of a loop and the start of the next
    this.speed = 1;
    this.loops = 0;
    this.whole = false; // this loop has been seen from its start
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

  /** Show a pair that is ready, from its start; `loops` have been seen before. */
  async show(clips, loops = 0) {
    this.pause();
    this.turning = false;
    this.clips = clips;
    this.loops = loops;
    clips.videos.forEach((video, side) => {
      video.setAttribute("aria-label", `Video ${side + 1}`);
      this.glasses[side].replaceChildren(video);
    });
    this.stage.style.setProperty("--shape", clips.shape.width / clips.shape.height);
    this.stage.style.setProperty("--width", `${clips.shape.width}px`);
    this.stage.classList.toggle("wide", clips.shape.width > 1.2 * clips.shape.height);
    await this.#rewind();
    if (this.clips === clips && !this.still.matches && !document.hidden) this.play();
  }

  play() {
    if (!this.clips || this.playing) return;
    const [first, second] = this.clips.videos;
    if (first.ended || second.ended) {
      this.replay();
      return;
    }
    this.#setPlaying(true);
    if (!this.turning) this.#start();
  }

  pause() {
    this.#setPlaying(false);
    if (!this.clips || this.turning) return;
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

  /** Show the frame before or after, of both. */
  step(by) {
    if (!this.clips) return;
    this.pause();
    const { fps, frames } = this.clips.shape;
    this.whole = false;
    this.frame = (this.frame + by + frames) % frames;
    for (const video of this.clips.videos) video.currentTime = (this.frame + 0.5) / fps;
    this.#count(this.frame);
  }

  /** Go to the next slower speed, or back to the full one. */
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
        this.pause(); // what is not seen is not played, so that the loop stays whole
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
    for (const glass of this.glasses) observer.observe(glass);
  }

  #start() {
    const clips = this.clips;
    for (const video of clips.videos) {
      video.playbackRate = this.speed;
      video.play().catch((problem) => {
        // A browser may want a click first; being paused meanwhile is no problem.
        if (problem.name === "NotAllowedError" && this.clips === clips) this.pause();
      });
    }
  }

  async #rewind() {
    await Promise.all(this.clips.videos.map((video) => seeked(video, 0)));
    this.frame = 0;
    this.whole = true;
    this.#count(0);
  }

  #tick() {
    if (!this.clips || !this.playing || this.turning) return;
    const [first, second] = this.clips.videos;
    if (this.observed && this.visible.size < 2) this.whole = false;
    if (first.ended && second.ended) {
      this.#turn();
      return;
    }
    this.#count(this.#frameAt(first.currentTime));
    if (first.ended || second.ended || first.seeking || second.seeking) return;
    this.#align(first, second, 0.5 / this.clips.shape.fps);
  }

  /** Let the second video follow the first: gently, or by a jump where half a frame is at stake. */
  #align(first, second, half) {
    const apart = second.currentTime - first.currentTime;
    if (Math.abs(apart) > half) {
      second.currentTime = first.currentTime;
      return;
    }
    const rate = second.playbackRate / this.speed;
    const nudged = Math.abs(rate - 1) > NUDGE / 2;
    let wanted = 1;
    if (Math.abs(apart) > (nudged ? NUDGE_UNTIL : NUDGE_FROM)) {
      wanted = 1 - Math.sign(apart) * NUDGE;
    }
    if (Math.abs(rate - wanted) > NUDGE / 2) second.playbackRate = this.speed * wanted;
  }

  /** The loop is over: count it, and begin the next one. */
  async #turn() {
    const clips = this.clips;
    this.turning = true;
    const seen = this.whole && this.visible.size === 2 && !document.hidden;
    await this.#rewind();
    if (this.clips !== clips) return;
    this.turning = false;
    if (seen) {
      this.loops += 1;
      this.onLoop(this.loops);
    }
    // With reduced motion a loop is played when it is asked for.
    if (this.still.matches) this.pause();
    else if (this.playing) this.#start();
  }

  #frameAt(time) {
    const { fps, frames } = this.clips.shape;
    return Math.min(frames - 1, Math.floor(time * fps + 0.01));
  }

  #count(frame) {
    const text = `frame ${frame + 1} of ${this.clips.shape.frames}`;
    if (this.counter.textContent !== text) this.counter.textContent = text;
  }

  #setPlaying(playing) {
    this.playing = playing;
    this.stage.classList.toggle("playing", playing);
    const button = this.stage.querySelector("[data-do=toggle]");
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
  }
}
