/** One message on the screen: its text, how its answer ended, and what can be done with it. */

import { fitHeight, sendOnEnter } from "./composer.js";
import { copyText, h, icon, iconButton, languageOf } from "./dom.js";
import { failureCard } from "./failure.js";
import { TextBody } from "./fences.js";
import { decimal, t } from "./i18n.js";
import { notify } from "./notices.js";

/** @typedef {import("./conversations.js").Message} Message */
/** @typedef {import("./answering.js").Run} Run */

/**
 * @typedef {object} Actions What a message can ask for.
 * @property {(message: Message, text: string) => boolean} edit says if it did
 * @property {() => void} regenerate
 * @property {() => void} openSettings
 * @property {() => void} enterKey
 * @property {() => void} chooseModel
 */

const COPIED = 1500;

export class MessageView {
  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = new TextBody();
    this.status = h("div", { class: "status" });
    this.tools = h("div", { class: "tools" });
    this.element = h("article", { class: `message ${message.role}`, "data-id": message.id });
    this.element.append(this.body.element, this.status, this.tools);
    /** What the status and the tools were made for. */
    this.made = "";
    this.editing = false;
    /** The edit form's button. @type {HTMLButtonElement | null} */
    this.submit = null;
    this.busy = false;
  }

  /**
   * Show the message as it is now.
   * @param {{ run: Run | undefined, isLast: boolean, outside: boolean, busy: boolean }} state `busy`: some answer runs
   */
  update({ run, isLast, outside, busy }) {
    const { role, content, finish, error, stats } = this.message;
    this.busy = busy;
    if (this.submit !== null) this.submit.disabled = busy;
    const name = t(role === "user" ? "you" : "answer");
    this.element.setAttribute("aria-label", outside ? `${name} (${t("outside")})` : name);
    this.element.classList.toggle("outside", outside);
    this.element.classList.toggle("streaming", run !== undefined && content !== "");
    this.element.setAttribute("aria-busy", String(run !== undefined));
    this.body.element.lang = languageOf(content);
    this.body.update(content);
    const progress = run && content === "" ? JSON.stringify([run.progress, run.waits]) : null;
    const state = JSON.stringify([run !== undefined, progress, isLast, busy, finish, error, stats, content === "", t("copy")]);
    if (state === this.made || this.editing) return;
    this.made = state;
    this.status.replaceChildren(...(run ? this.#waiting(run) : this.#ending(isLast)));
    this.tools.replaceChildren(...(run ? [] : role === "user" ? this.#userTools(busy) : this.#answerTools(isLast, busy)));
  }

  /** @param {Run} run */
  #waiting({ message, progress, waits }) {
    if (message.content !== "") return [];
    const dots = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    if (waits) return [h("div", { class: "waiting" }, dots, h("span", {}, t("waitingForAnother")))];
    if (progress === null) return [h("div", { class: "waiting" }, dots, h("span", { class: "visually-hidden" }, t("waiting")))];
    const { done, total } = progress;
    const bar = h("progress", { max: total, value: done, "aria-label": t("reading", { done, total }) });
    return [h("div", { class: "reading" }, bar, h("span", { "aria-hidden": "true" }, t("reading", { done, total })))];
  }

  /** @param {boolean} isLast */
  #ending(isLast) {
    const { role, content, finish, error } = this.message;
    if (role === "user") return [];
    if (error) return [failureCard(error, isLast, this.actions)];
    const note = { stopped: "stopped", interrupted: "interrupted", length: "lengthReached", timeout: "timedOut" }[finish ?? "stop"];
    if (note) return [h("p", { class: "note" }, t(note))];
    return content.trim() === "" ? [h("p", { class: "note" }, t("emptyAnswer"))] : [];
  }

  /** @param {boolean} busy */
  #userTools(busy) {
    const edit = iconButton("edit", t("edit"), () => this.edit(), { disabled: busy });
    return [this.#copyButton(), edit];
  }

  /**
   * @param {boolean} isLast
   * @param {boolean} busy
   */
  #answerTools(isLast, busy) {
    const { content, stats, error } = this.message;
    const tools = content === "" ? [] : [this.#copyButton()];
    if (isLast && !error) tools.push(iconButton("again", t("regenerate"), () => this.actions.regenerate(), { disabled: busy }));
    if (stats && stats.tokens > 0) {
      const parts = [t("tokensWritten", { n: stats.tokens })];
      if (stats.speed > 0) parts.push(t("speed", { speed: decimal(stats.speed, 1) }));
      parts.push(t("firstToken", { seconds: decimal(stats.firstToken, 2) }));
      tools.push(h("span", { class: "stats" }, ...parts.map((part) => h("span", {}, part))));
    }
    return tools;
  }

  #copyButton() {
    const button = iconButton("copy", t("copy"), async () => {
      try {
        await copyText(this.message.content.trim());
      } catch {
        notify(t("copyFailed"));
        return;
      }
      notify(t("copied"));
      button.replaceChildren(icon("check"));
      setTimeout(() => button.replaceChildren(icon("copy")), COPIED);
    });
    return button;
  }

  /** Put a field in the place of the text. */
  edit() {
    if (this.editing) return;
    this.editing = true;
    this.element.classList.add("editing");
    const area = /** @type {HTMLTextAreaElement} */ (h("textarea", { class: "edit-area", "aria-label": t("editMessage"), rows: "1" }));
    area.value = this.message.content;
    const close = () => {
      this.editing = false;
      this.element.classList.remove("editing");
      this.submit = null;
      form.remove();
    };
    const send = () => {
      const text = area.value.trimEnd();
      if (text.trim() !== "" && this.actions.edit(this.message, text)) close();
    };
    const cancel = () => {
      close();
      this.tools.querySelector("button")?.focus();
    };
    this.submit = /** @type {HTMLButtonElement} */ (h("button", { type: "submit", class: "button primary" }, t("send")));
    this.submit.disabled = this.busy;
    const buttons = h(
      "div",
      { class: "edit-buttons" },
      h("button", { type: "button", class: "button", onclick: cancel }, t("cancel")),
      this.submit,
    );
    const form = h("form", { class: "edit" }, area, h("p", { class: "note" }, t("editNote")), buttons);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      send();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing) return;
      event.stopPropagation();
      cancel();
    });
    sendOnEnter(area, send);
    area.addEventListener("input", () => fitHeight(area));
    this.element.prepend(form);
    fitHeight(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
