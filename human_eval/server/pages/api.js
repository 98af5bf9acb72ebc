// Requests to the study's server. A lost request is repeated until it is answered: the server
// stores an answer once, however often it arrives.

import { text } from "./text.js";

const TIMEOUT = 15_000; // milliseconds for one attempt
const CLIP_TIMEOUT = 120_000;
const LONGEST_PAUSE = 4_000;

/** The server understood the request and refused it. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Send a request until it is answered.
 * @param {string} path relative to the study's root
 * @param {object} [body] sent as JSON; without it the request is a GET
 * @param {(response: Response) => Promise<any>} read extracts the content of the response
 * @param {(lost: boolean) => void} onConnection called when the connection is lost or back
 * @param {number} [timeout] milliseconds for one attempt
 */
async function send(path, body, read, onConnection, timeout = TIMEOUT) {
  const options = { cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  for (let attempt = 0; ; attempt += 1) {
    try {
      const response = await fetch(path, { ...options, signal: AbortSignal.timeout(timeout) });
      if (response.ok) {
        const content = await read(response);
        if (attempt > 0) onConnection(false);
        return content;
      }
      if (response.status < 500 && response.status !== 429) {
        if (attempt > 0) onConnection(false);
        const { error } = await response.json().catch(() => ({}));
        throw new Refused(response.status, error ?? text("Something went wrong. Reload the page."));
      }
    } catch (problem) {
      if (problem instanceof Refused) throw problem;
    }
    onConnection(true);
    await pause(Math.min(LONGEST_PAUSE, 250 * 2 ** attempt) * (0.75 + Math.random() / 2));
  }
}

/** Wait, but no longer than until the browser reports that it is online. */
function pause(milliseconds) {
  return new Promise((done) => {
    const timer = setTimeout(finish, milliseconds);
    function finish() {
      clearTimeout(timer);
      removeEventListener("online", finish);
      done();
    }
    addEventListener("online", finish);
  });
}

/** The study's routes. */
export class Api {
  /** @param {(lost: boolean) => void} onConnection called when the connection is lost or back */
  constructor(onConnection) {
    this.onConnection = onConnection;
  }

  study() {
    return this.#ask("api/study");
  }

  enter(body) {
    return this.#ask("api/enter", body);
  }

  claim(ahead = false) {
    return this.#ask("api/claim", { ahead });
  }

  submit(body) {
    return this.#ask("api/submit", body);
  }

  returnPair(body) {
    return this.#ask("api/return", body);
  }

  stop(technical) {
    return this.#ask("api/stop", { technical });
  }

  /** Load a whole clip, so that it never stalls while it plays. */
  clip(path) {
    return send(path, undefined, (response) => response.blob(), this.onConnection, CLIP_TIMEOUT);
  }

  #ask(path, body) {
    return send(path, body, (response) => response.json(), this.onConnection);
  }
}
