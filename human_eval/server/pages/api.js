// Requests to the study's server. A lost request is repeated until it is answered: the server
// stores an answer once, however often it arrives.

import { text } from "./text.js";

const TIMEOUT = 15_000; // milliseconds without a sign of life until another attempt
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
 * @param {(response: Response, alive: () => void) => Promise<any>} read extracts the content of
 *   the response; it calls `alive` when a part has arrived
 * @param {(lost: boolean) => void} onConnection called when the connection is lost or back
 * @param {() => object} [headers] of each attempt
 */
async function send(path, body, read, onConnection, headers = () => ({})) {
  const options = { cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  for (let attempt = 0; ; attempt += 1) {
    const patience = new AbortController();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => patience.abort(), TIMEOUT);
    };
    alive();
    try {
      const all = { ...options.headers, ...headers() };
      const response = await fetch(path, { ...options, headers: all, signal: patience.signal });
      if (response.ok) {
        if (attempt > 0) onConnection(false);
        return await read(response, alive);
      }
      if (response.status < 500 && response.status !== 429) {
        if (attempt > 0) onConnection(false);
        const { error } = await response.json().catch(() => ({}));
        throw new Refused(response.status, error ?? text("Something went wrong. Reload the page."));
      }
    } catch (problem) {
      if (problem instanceof Refused) throw problem;
    } finally {
      clearTimeout(timer);
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

  /**
   * Load a whole clip, so that it never stalls while it plays. An attempt goes on where the last
   * one ended.
   * @param {string} path
   * @param {(share: number) => void} onProgress called with the fraction that has arrived
   */
  clip(path, onProgress) {
    let parts = [];
    let received = 0;
    const read = async (response, alive) => {
      if (response.status !== 206) [parts, received] = [[], 0];
      const size = received + Number(response.headers.get("content-length"));
      const reader = response.body.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        alive();
        parts.push(value);
        received += value.length;
        onProgress(Math.min(1, received / size));
      }
      return new Blob(parts, { type: response.headers.get("content-type") });
    };
    const headers = () => (received ? { range: `bytes=${received}-` } : {});
    return send(path, undefined, read, this.onConnection, headers);
  }

  #ask(path, body) {
    return send(path, body, (response) => response.json(), this.onConnection);
  }
}
