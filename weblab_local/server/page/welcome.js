/** Questions to begin with. The demo model knows their answers by heart. */

import { byId, h } from "./dom.js";
import { language } from "./i18n.js";

const SUGGESTIONS = {
  ja: [
    "大規模言語モデルについて説明してください。",
    "俳句を一つ作ってください。",
    "FizzBuzzをPythonで書いて。",
    "KVキャッシュの役割は？",
  ],
  en: [
    "What is a large language model?",
    "Write a haiku about morning.",
    "Show me a nested loop in Python.",
    "Tell me a very short story.",
  ],
};

/** @param {(text: string) => void} choose */
export function showSuggestions(choose) {
  const items = SUGGESTIONS[language()].map((text) =>
    h("li", {}, h("button", { type: "button", onclick: () => choose(text) }, text)),
  );
  byId("suggestions").replaceChildren(...items);
}
