// Requests to the study. One that gets lost is sent again until it is answered: the server stores
// an answer once, however often it comes.

const PATIENCE = 15_000; // milliseconds for one attempt
const CLIP_PATIENCE = 120_000;
const LONGEST_PAUSE = 4_000;

/** The server has understood, and says no. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Send a request until there is an answer to it.
 * @param {string} path relative to the study's root
 * @param {object} [body] sent as JSON; without it the request is a GET
 * @param {(answer: Response) => Promise<any>} read takes the content out of the answer
 * @param {(lost: boolean) => void} onConnection told when the way is lost, and when it is back
 * @param {number} [patience] milliseconds for one attempt
 */
async function send(path, body, read, onConnection, patience = PATIENCE) {
  const options = { cache: "no-store", credentials: "same-origin" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "content-type": "application/json" };
    options.body = JSON.stringify(body);
  }
  for (let attempt = 0; ; attempt += 1) {
    try {
      const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(patience) });
      if (answer.ok) {
        const content = await read(answer);
        if (attempt > 0) onConnection(false);
        return content;
      }
      if (answer.status < 500 && answer.status !== 429) {
        if (attempt > 0) onConnection(false);
        const told = await answer.json().catch(() => ({}));
        throw new Refused(answer.status, told.error ?? `The server refused (${answer.status}).`);
      }
    } catch (problem) {
      if (problem instanceof Refused) throw problem;
    }
    onConnection(true);
    await pause(Math.min(LONGEST_PAUSE, 250 * 2 ** attempt) * (0.75 + Math.random() / 2));
  }
}

/** Wait, but not once the browser says that the network is back. */
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

/** The study's routes, on one connection. */
export class Service {
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

  giveBack(body) {
    return this.#ask("api/return", body);
  }

  stop(technical) {
    return this.#ask("api/stop", { technical });
  }

  /** The whole clip, so that nothing can stall once it plays. */
  clip(path) {
    return send(path, undefined, (answer) => answer.blob(), this.onConnection, CLIP_PATIENCE);
  }

  #ask(path, body) {
    return send(path, body, (answer) => answer.json(), this.onConnection);
  }
}
