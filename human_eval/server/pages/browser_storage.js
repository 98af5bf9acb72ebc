// Storage of the browser. A browser that blocks it throws; the page then works without.

export const PROBLEM = "human-eval-problem"; // in sessionStorage: why the page was loaded again

/** Return the text under a key; null if there is none or storage is blocked. */
export function read(kind, key) {
  try {
    return window[kind].getItem(key);
  } catch {
    return null;
  }
}

/** Store a text under a key, or remove the key if the text is null. */
export function write(kind, key, text) {
  try {
    if (text === null) window[kind].removeItem(key);
    else window[kind].setItem(key, text);
  } catch {
    // The choice holds until the page is closed.
  }
}
