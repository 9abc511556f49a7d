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
  /**
   * @param {object} actions
   * @param {(text: string) => boolean} actions.send says if it did
   * @param {() => void} actions.stop
   * @param {() => void} actions.editLast
   * @param {(text: string, isComposing: boolean) => void} actions.changed told of every change of the text
   */
  constructor(actions) {
    this.actions = actions;
    this.area = /** @type {HTMLTextAreaElement} */ (byId("input"));
    this.sendButton = /** @type {HTMLButtonElement} */ (byId("send"));
    this.stopButton = /** @type {HTMLButtonElement} */ (byId("stop"));
    this.draft = "";
    this.running = false;
    sendOnEnter(this.area, () => this.#send());
    this.area.addEventListener("input", (event) => this.#changed(/** @type {InputEvent} */ (event).isComposing));
    this.area.addEventListener("compositionend", () => this.#changed());
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

  /** Say once more what is in the field: what it would be an answer to has changed. */
  tell() {
    this.actions.changed(this.area.value, false);
  }

  #send() {
    const text = this.area.value.trimEnd();
    if (text.trim() === "" || this.running || !this.actions.send(text)) return;
    this.area.value = "";
    this.#changed();
  }

  #changed(isComposing = false) {
    const { value } = this.area;
    this.actions.changed(value, isComposing);
    this.sendButton.disabled = value.trim() === "";
    if (value === "") tabStorage.remove(this.draft);
    else tabStorage.write(this.draft, value);
    fitHeight(this.area);
  }
}
