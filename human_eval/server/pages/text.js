// The page's sentences in the language of the study.

import catalogue from "./catalogue.js"; // served by language.py: translations by English sentence

/**
 * Translate a sentence and fill in its {placeholders}.
 * @param {string} sentence in English, word for word as in the catalogues
 * @param {Record<string, string | number>} [values] by name of placeholder
 */
export function text(sentence, values = {}) {
  const translated = catalogue[sentence] ?? sentence;
  return translated.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
