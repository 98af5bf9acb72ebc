// The way back to a crowd platform: a link, which is followed after a pause unless the rater stays.

import { announce } from "./rating.js";
import { text } from "./text.js";

const PAUSE = 15; // seconds

const $ = (id) => document.getElementById(id);
let timer = null;

/** Offer the way back to an address, and follow it after the pause; without one, hide it. */
export function offerReturn(address) {
  stayHere();
  $("finish").hidden = !address;
  if (!address) return;
  $("finish").href = address;
  if (self !== top) {
    $("finish").target = "_top"; // platforms refuse frames, and a frame needs a click to leave
    return;
  }
  const at = Date.now() + 1000 * PAUSE;
  const count = () => {
    const seconds = Math.max(0, Math.ceil((at - Date.now()) / 1000));
    $("return-text").textContent = text("You return to the platform in {seconds} s.", { seconds });
    if (seconds > 0) return;
    clearInterval(timer);
    location.assign(address);
  };
  timer = setInterval(count, 250);
  count();
  $("return").hidden = false;
  announce($("return-text").textContent);
}

/** Stop the countdown. */
export function stayHere() {
  clearInterval(timer);
  $("return").hidden = true;
}
