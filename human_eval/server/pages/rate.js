// The page, from the consent to the completion code.

import { Api, Refused } from "./api.js";
import { PROBLEM, read, write } from "./browser_storage.js";
import { connectDialogs } from "./dialogs.js";
import { Rating, announce } from "./rating.js";
import { offerReturn, stayHere } from "./return.js";
import { Shortcuts } from "./shortcuts.js";
import { text } from "./text.js";

// Parameters of our own; others in the address come from a crowd platform.
const OURS = ["theme", "__theme", "staff", "link", "invitation"];
const POLLS = { paused: 15_000, waiting: 5_000 }; // milliseconds until the page asks again
const ENDINGS = {
  done: [text("All done. Thank you!"), text("Your answers are saved.")],
  no_work_left: [
    text("No pairs left"),
    text("Other raters have answered all pairs. Thank you for coming."),
  ],
  screened_out: [
    text("The study ends here for you"),
    text("There are no more pairs. Your answers are saved."),
  ],
  technical: [
    text("The study ends here for you"),
    text("Your answers are saved. We will review them."),
  ],
  stopped: [
    text("You have stopped"),
    text("Your answers are saved. Open the same link to continue."),
  ],
  waiting: [
    text("Please wait"),
    text("Other raters have the last pairs. This page continues when one becomes free."),
  ],
  later: [
    text("This is all for today"),
    text("Your answers are saved. Open the same link tomorrow to continue."),
  ],
  paused: [
    text("The study is paused"),
    text("Your answers are saved. This page continues automatically."),
  ],
};
const CLOSED = text("The study is closed. Answers that were sent before are stored.");
const NO_COOKIE = text(
  "Your browser blocks the cookies of this page, so your answers cannot be stored. Allow cookies for this site and reload the page, or open the page in a window of its own.",
);

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const api = new Api(showConnection);
let study = null;
let rating = null;
let ended = null; // the outcome on screen
let poll; // timer until the page asks again whether there is a pair
let held = false; // the videos are paused because a dialog is open

async function start() {
  setTheme();
  connectDialogs(holdWhile);
  connectButtons();
  study = await api.study();
  describe();
  const arriving = ["link", "invitation", "staff"].some((name) => query.has(name));
  if (study.entered && !arriving) await rate();
  else show("welcome");
  const told = read("sessionStorage", PROBLEM);
  if (told) complain(told);
  write("sessionStorage", PROBLEM, null);
}

function setTheme() {
  const theme = query.get("theme") ?? query.get("__theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}

/** Pause the videos while a dialog is open. */
function holdWhile(open) {
  if (!rating) return;
  if (open) {
    held = rating.player.playing;
    rating.player.pause();
  } else if (held) {
    held = false;
    rating.player.play();
  }
}

/** Show one part of the page and move the focus to its heading. */
function show(name) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== name;
  $(name).querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Undo the line breaks of the study file, but keep paragraphs. */
function joinLines(text) {
  return text.replace(/([^\n])\n(?!\n)/g, "$1 ");
}

function describe() {
  const { min_loops: loops, questions, consent, instructions, entry } = study;
  $("how-to-watch").textContent =
    loops > 1
      ? text("Watch both videos to the end, {count} times.", { count: loops })
      : text("Watch both videos to the end.");
  const count = questions.length;
  $("how-to-answer").textContent =
    count === 1
      ? text("Answer one question and send your answer. Then the next pair starts.")
      : text("Answer {count} questions and send your answers. Then the next pair starts.", {
          count,
        });
  $("when-equal").hidden = !questions.every(({ forced }) => forced);
  $("instructions").textContent = joinLines(instructions);
  $("consent-text").textContent = joinLines(
    consent || text("Your answers are stored under a pseudonym."),
  );
  const most = Math.max(...questions.map(({ choices }) => choices.length));
  $("answer-keys").replaceChildren(...Array.from({ length: most }, (_, place) => key(place + 1)));
  const hasLink = query.has("link") || query.has("invitation");
  $("login").hidden = !(query.has("staff") || (entry.staff && !entry.anonymous && !hasLink));
  if (!entry.anonymous && !hasLink && $("login").hidden) {
    complain(text("This study is by invitation only. Open the link you were given."));
    $("begin").disabled = true;
  }
}

function key(name) {
  const made = document.createElement("kbd");
  made.textContent = name;
  return made;
}

function connectButtons() {
  $("entry").addEventListener("submit", (event) => {
    event.preventDefault();
    enter();
  });
  $("stage").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-do]");
    if (button) ACTIONS[button.dataset.do]();
    else if (target.closest(".screen")) rating.player.toggle();
  });
  $("skip-form").addEventListener("change", () => ($("skip-now").disabled = false));
  $("skip-form").addEventListener("submit", () => {
    const why = new FormData($("skip-form")).get("why");
    $("skip-form").reset();
    $("skip-now").disabled = true;
    rating.skip(why);
  });
  $("stop-now").addEventListener("click", () => stop(false));
  $("stop-waiting").addEventListener("click", () => stop(false));
  $("stop-technical").addEventListener("click", () => stop(true));
  $("go-on").addEventListener("click", () => rate());
  $("stay").addEventListener("click", () => {
    stayHere();
    $("end-title").focus(); // the button is gone
  });
  $("undo-last").addEventListener("click", () => {
    stayHere();
    show("rating");
    rating.undo();
  });
  $("copy").addEventListener("click", copyCode);
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("stage").classList.contains("large")) enlarge();
  });
}

async function enter() {
  complain("");
  if (!$("consent").checked) {
    complain(text("Please accept the consent text first."));
    $("consent").focus();
    return;
  }
  const body = { consent: true };
  for (const name of ["link", "invitation"]) if (query.has(name)) body[name] = query.get(name);
  const rest = [...query].filter(([name, value]) => !OURS.includes(name) && value.length <= 200);
  body.parameters = Object.fromEntries(rest.slice(0, 20));
  if (!$("login").hidden) {
    body.name = $("login-name").value.trim();
    body.password = $("login-password").value;
  }
  $("begin").disabled = true;
  try {
    await api.enter(body);
    if (!(await api.study()).entered) {
      complain(NO_COOKIE);
      return;
    }
    hideParameters();
    await rate();
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    show("welcome");
    complain(problem.message);
  } finally {
    $("begin").disabled = false;
  }
}

/** Remove personal parameters from the address bar; the cookie identifies the rater now. */
function hideParameters() {
  for (const name of [...query.keys()]) if (!name.endsWith("theme")) query.delete(name);
  const rest = query.toString();
  history.replaceState(null, "", rest ? `?${rest}` : location.pathname);
}

/** Show the rater's pair; without `atOnce` the page stays as it is until there is one. */
async function rate(atOnce = true) {
  rating ??= makeRating();
  if (atOnce) show("rating");
  try {
    await rating.begin();
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    show("welcome");
    complain(problem.message);
  }
}

function makeRating() {
  const made = new Rating(api, study, () => show("rating"), end);
  const shortcuts = {
    " ": ACTIONS.toggle,
    r: ACTIONS.replay,
    ",": ACTIONS.back,
    ".": ACTIONS.forward,
    d: ACTIONS.speed,
    f: ACTIONS.enlarge,
    s: () => document.querySelector("#rating .bar [data-open=skip]").click(),
    "?": () => document.querySelector("#rating .bar [data-open=help]").click(),
    u: () => made.undo(),
    enter: () => made.submit(),
    backspace: () => made.questions.back(),
  };
  for (let number = 0; number < 5; number += 1) {
    shortcuts[number + 1] = () => made.questions.pick(number);
  }
  const whileRating = Object.entries(shortcuts).map(([key, action]) => [
    key,
    () => !$("rating").hidden && action(),
  ]);
  new Shortcuts($("shortcuts"), Object.fromEntries(whileRating));
  return made;
}

const ACTIONS = {
  toggle: () => rating.player.toggle(),
  replay: () => rating.player.replay(),
  back: () => rating.player.step(-1),
  forward: () => rating.player.step(1),
  speed: () => {
    const speed = rating.player.changeSpeed();
    $("speed").textContent = { 1: "1×", 0.5: "½×", 0.25: "¼×" }[speed];
    announce(text("Speed: {speed}", { speed }));
  },
  enlarge,
};

function enlarge() {
  const large = $("stage").classList.toggle("large");
  rating.layout.fit();
  $("stage").querySelector("[data-do=enlarge]").setAttribute("aria-pressed", large);
}

async function stop(technical) {
  $("leave").close();
  try {
    end(await api.stop(technical));
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    location.reload();
  }
}

function end({ outcome, closed, code, finish, progress }) {
  if (outcome in POLLS) askAgain(outcome);
  if (outcome === ended && !$("end").hidden) return;
  ended = outcome;
  const cut = closed && outcome !== "done";
  const [title, told] = cut ? [text("The study ends here for you"), CLOSED] : ENDINGS[outcome];
  $("end-title").textContent = title;
  const { answered } = progress;
  $("end-text").textContent = answered
    ? `${told} ${text("Answered pairs: {count}.", { count: answered })}`
    : told;
  $("code-box").hidden = !code;
  $("code").textContent = code;
  $("go-on").hidden = outcome !== "stopped" && outcome !== "paused";
  $("stop-waiting").hidden = outcome !== "waiting";
  rating?.halt(["done", "no_work_left", "waiting"].includes(outcome));
  show("end");
  offerReturn(finish);
}

/** Ask for a pair after a while, but only while the rater sees the page: a pair can expire. */
function askAgain(outcome) {
  clearTimeout(poll);
  poll = setTimeout(() => {
    if ($("end").hidden) return;
    if (document.hidden) askAgain(outcome);
    else rate(false);
  }, POLLS[outcome]);
}

async function copyCode() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copied").textContent = text("Copied.");
  } catch {
    getSelection().selectAllChildren($("code"));
    $("copied").textContent = text("The code is selected. Press Ctrl+C to copy it.");
  }
}

function complain(text) {
  $("entry-problem").textContent = text;
}

function showConnection(lost) {
  $("connection").hidden = !lost;
  $("connection").textContent = lost
    ? text("The connection is lost. Your answers are kept and will be sent when it is back.")
    : "";
}

document.querySelector("[data-open=leave]").addEventListener("click", () => {
  const wanted = study.wanted;
  $("leave-text").textContent = wanted
    ? text("You have answered {count} of {wanted} pairs. The code follows the last one.", {
        count: rating.answered,
        wanted,
      })
    : text("Answered pairs: {count}. You may stop at any time.", { count: rating.answered });
});

start().catch((problem) => {
  $("connection").hidden = false;
  const hint = text("This page does not work in this browser. Please try another one.");
  $("connection").textContent = `${hint} (${problem.message})`;
  throw problem;
});
