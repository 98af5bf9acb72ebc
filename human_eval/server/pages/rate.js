// The page from consent to completion code.

import { connectDialogs } from "./dialogs.js";
import { Shortcuts } from "./keys.js";
import { Rating, announce } from "./rating.js";
import { Refused, Service } from "./service.js";

const OURS = ["theme", "__theme", "staff", "link", "invitation"]; // the rest is a platform's
const PAUSED_POLL = 15_000; // milliseconds between two looks whether a paused study goes on
const ENDINGS = {
  done: ["Thank you. That is all.", "All your answers are stored."],
  no_work_left: ["Nothing is left to rate", "Others have answered everything. Thank you."],
  screened_out: ["Your part ends here", "You get no more pairs. What you answered is stored."],
  technical: ["Your part ends here", "What you answered is stored. A researcher will look at it."],
  stopped: ["You have stopped", "What you answered is stored. The same link leads you back."],
  paused: ["The study is paused", "What you answered is stored. This page goes on by itself."],
};

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const service = new Service(showConnection);
let study = null;
let rating = null;
let held = false; // the videos wait for a dialog

async function start() {
  setTheme();
  connectDialogs(holdWhile);
  connectButtons();
  study = await service.study();
  describe();
  const arriving = ["link", "invitation", "staff"].some((name) => query.has(name));
  if (study.entered && !arriving) await rate();
  else show("welcome");
}

function setTheme() {
  const theme = query.get("theme") ?? query.get("__theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}

/** Videos wait while a dialog is open. */
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

/** Show one part of the page, and bring the keyboard and screen readers to its heading. */
function show(name) {
  for (const main of document.querySelectorAll("main")) main.hidden = main.id !== name;
  $(name).querySelector("h1").focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Join the lines that the study's file breaks; blank ones still part paragraphs. */
function joinLines(text) {
  return text.replace(/([^\n])\n(?!\n)/g, "$1 ");
}

function describe() {
  const { min_loops: loops, questions, consent, instructions, ways_in: waysIn } = study;
  $("loops-needed").textContent = loops > 1 ? `, ${loops} times` : "";
  const count = questions.length;
  $("question-count").textContent = count === 1 ? "one question" : `${count} questions`;
  $("instructions").textContent = joinLines(instructions);
  $("consent-text").textContent = joinLines(
    consent || "Your answers are stored under a pseudonym.",
  );
  const ties = questions.some(({ choices }) => choices.length > 2);
  for (const line of document.querySelectorAll(".tie-key")) line.hidden = !ties;
  const comesBy = query.has("link") || query.has("invitation");
  $("login").hidden = !(query.has("staff") || (waysIn.staff && !waysIn.anonymous && !comesBy));
  if (!waysIn.anonymous && !comesBy && $("login").hidden) {
    complain("This study is by invitation. Open the link that you were given.");
    $("begin").disabled = true;
  }
}

function connectButtons() {
  $("entry").addEventListener("submit", (event) => {
    event.preventDefault();
    enter();
  });
  $("stage").addEventListener("click", ({ target }) => {
    const button = target.closest("[data-do]");
    if (button) ACTIONS[button.dataset.do]();
    else if (target.closest(".glass")) rating.player.toggle();
  });
  $("skip-form").addEventListener("change", () => ($("skip-now").disabled = false));
  $("skip-form").addEventListener("submit", () => {
    const why = new FormData($("skip-form")).get("why");
    $("skip-form").reset();
    $("skip-now").disabled = true;
    rating.skip(why);
  });
  $("stop-now").addEventListener("click", () => stop(false));
  $("stop-technical").addEventListener("click", () => stop(true));
  $("go-on").addEventListener("click", () => rate());
  $("undo-last").addEventListener("click", () => {
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
    complain("Tick the box first, if you agree.");
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
    await service.enter(body);
    forgetAddress();
    await rate();
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    show("welcome");
    complain(problem.message);
  } finally {
    $("begin").disabled = false;
  }
}

/** Names do not stay in the address bar: from here on the cookie knows. */
function forgetAddress() {
  for (const name of [...query.keys()]) if (!name.endsWith("theme")) query.delete(name);
  const rest = query.toString();
  history.replaceState(null, "", rest ? `?${rest}` : location.pathname);
}

async function rate() {
  rating ??= makeRating();
  show("rating");
  try {
    await rating.begin();
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    show("welcome");
    complain(problem.message);
  }
}

function makeRating() {
  const made = new Rating(service, study, end);
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
  for (let number = 0; number < 4; number += 1) {
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
    announce(`Speed: ${speed}`);
  },
  enlarge,
};

function enlarge() {
  const large = $("stage").classList.toggle("large");
  $("stage").querySelector("[data-do=enlarge]").setAttribute("aria-pressed", large);
}

async function stop(technical) {
  $("leave").close();
  try {
    end(await service.stop(technical));
  } catch (problem) {
    if (!(problem instanceof Refused)) throw problem;
    location.reload();
  }
}

function end({ outcome, code, finish, progress }) {
  const [title, text] = ENDINGS[outcome];
  $("end-title").textContent = title;
  const count = progress.answered === 1 ? "1 pair" : `${progress.answered} pairs`;
  $("end-text").textContent = progress.answered ? `${text} You have answered ${count}.` : text;
  $("code-box").hidden = !code;
  $("code").textContent = code;
  $("finish").hidden = !finish;
  if (finish) $("finish").href = finish;
  $("go-on").hidden = outcome !== "stopped" && outcome !== "paused";
  rating?.halt(outcome === "done");
  show("end");
  if (outcome === "paused") setTimeout(() => $("end").hidden || rate(), PAUSED_POLL);
}

async function copyCode() {
  try {
    await navigator.clipboard.writeText($("code").textContent);
    $("copied").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren($("code"));
    $("copied").textContent = "Selected: copy it with Ctrl+C.";
  }
}

function complain(text) {
  $("entry-problem").textContent = text;
}

function showConnection(lost) {
  $("connection").hidden = !lost;
  $("connection").textContent = lost
    ? "The connection is lost. What you answer is kept here and is sent as soon as it is back."
    : "";
}

document.querySelector("[data-open=leave]").addEventListener("click", () => {
  const wanted = study.wanted;
  $("leave-text").textContent = wanted
    ? `You have answered ${rating.answered} of ${wanted} pairs. The code comes after the last one.`
    : `You have answered ${rating.answered}. You may stop whenever you like.`;
});

start().catch((problem) => {
  $("connection").hidden = false;
  $("connection").textContent = `This page cannot run in this browser: ${problem.message}`;
  throw problem;
});
