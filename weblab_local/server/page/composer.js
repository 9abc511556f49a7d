/** Where messages are written. Enter sends, except while an input method is converting. */

import { byId, isTouchOnly } from "./dom.js";
import { tabStorage } from "./storage.js";

/**
 * Call `send` for Enter, and for Ctrl+Enter or Command+Enter on a touch screen's keyboard, where Enter is a new line.
 *
 * The Enter that ends a conversion of kana to kanji is none: browsers mark it with isComposing or with key code 229, and
 * Safari sends it after compositionend, in the same task.
 * @param {HTMLTextAreaElement} area
 * @param {() => void} send
 */
export function sendOnEnter(area, send) {
  let converting = false;
  area.addEventListener("compositionstart", () => (converting = true));
  area.addEventListener("compositionend", () => setTimeout(() => (converting = false)));
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.altKey) return;
    if (converting || event.isComposing || event.keyCode === 229) return;
    if (isTouchOnly() && !event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    send();
  });
  area.enterKeyHint = isTouchOnly() ? "enter" : "send";
}

/**
 * Let a text area be as high as its text; CSS sets the limits.
 * @param {HTMLTextAreaElement} area
 */
export function fitHeight(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** The field at the bottom of the page, with its draft for each conversation. */
export class Composer {
  /** @param {{ send: (text: string) => boolean, stop: () => void, editLast: () => void }} actions `send` says if it did */
  constructor(actions) {
    this.actions = actions;
    this.area = /** @type {HTMLTextAreaElement} */ (byId("input"));
    this.sendButton = /** @type {HTMLButtonElement} */ (byId("send"));
    this.stopButton = /** @type {HTMLButtonElement} */ (byId("stop"));
    this.draft = "";
    this.running = false;
    sendOnEnter(this.area, () => this.#send());
    this.area.addEventListener("input", () => this.#changed());
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowUp" || this.area.value !== "" || event.isComposing || event.altKey) return;
      event.preventDefault();
      actions.editLast();
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.stopButton.addEventListener("click", () => {
      actions.stop();
      this.area.focus();
    });
  }

  /**
   * Go over to another conversation and its draft.
   * @param {string} id
   */
  open(id) {
    this.draft = `draft.${id}`;
    this.area.value = tabStorage.read(this.draft) ?? "";
    this.#changed();
  }

  /** @param {boolean} running whether the conversation is being answered */
  setRunning(running) {
    this.running = running;
    if (running !== !this.stopButton.hidden && document.activeElement === (running ? this.sendButton : this.stopButton)) {
      this.area.focus();
    }
    this.sendButton.hidden = running;
    this.stopButton.hidden = !running;
  }

  #send() {
    const text = this.area.value.trimEnd();
    if (text.trim() === "" || this.running || !this.actions.send(text)) return;
    this.area.value = "";
    this.#changed();
  }

  #changed() {
    const { value } = this.area;
    this.sendButton.disabled = value.trim() === "";
    if (value === "") tabStorage.remove(this.draft);
    else tabStorage.write(this.draft, value);
    fitHeight(this.area);
  }
}
