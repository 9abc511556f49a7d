/** The text of a message as elements: paragraphs as they are, and fenced code in <pre> with a button that copies it. */

import { copyText, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { notify } from "./notices.js";

/** @typedef {{ code: boolean, language: string, text: string }} Block */

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;

/**
 * The blocks of a text. A fence that is still open reaches to the end.
 * @param {string} text
 * @returns {Block[]}
 */
export function blocksOf(text) {
  /** @type {Block[]} */
  const blocks = [];
  /** @type {string[]} */
  let lines = [];
  let fence = "";
  let language = "";
  const close = () => {
    const joined = lines.join("\n");
    const content = fence ? joined : joined.replace(/^\n+|\n+$/g, "");
    if (fence || content !== "") blocks.push({ code: fence !== "", language, text: content });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const match = FENCE.exec(line);
    if (fence === "" && match) {
      close();
      [, fence, language] = match;
    } else if (match && match[1].startsWith(fence) && match[2] === "") {
      close();
      fence = "";
    } else lines.push(line);
  }
  close();
  return blocks;
}

/** A text that grows: what is there already is left alone. */
export class TextBody {
  constructor() {
    this.element = h("div", { class: "body" });
    /** @type {{ block: Block, node: Text }[]} */
    this.shown = [];
    this.text = "";
  }

  /** @param {string} text */
  update(text) {
    if (text === this.text) return;
    this.text = text;
    const blocks = blocksOf(text);
    while (this.shown.length > blocks.length) this.#removeLast();
    blocks.forEach((block, i) => {
      const old = this.shown[i];
      if (old && old.block.code === block.code && old.block.language === block.language) {
        if (block.text.startsWith(old.block.text)) old.node.appendData(block.text.slice(old.block.text.length));
        else old.node.data = block.text;
        old.block = block;
        return;
      }
      while (this.shown.length > i) this.#removeLast();
      const node = document.createTextNode(block.text);
      const entry = { block, node };
      this.shown.push(entry);
      this.element.append(block.code ? codeElement(entry) : h("div", { class: "text" }, node));
    });
  }

  #removeLast() {
    this.shown.pop();
    this.element.lastElementChild?.remove();
  }
}

/** @param {{ block: Block, node: Text }} entry */
function codeElement(entry) {
  const copy = iconButton("copy", t("copyCode"), async () => {
    try {
      await copyText(entry.block.text);
      notify(t("copied"));
    } catch {
      notify(t("copyFailed"));
    }
  });
  const name = entry.block.language || t("code");
  return h(
    "div",
    { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, name), copy),
    h("pre", { tabindex: "0", role: "region", "aria-label": name, translate: "no" }, h("code", {}, entry.node)),
  );
}
