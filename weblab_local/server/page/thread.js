/** The messages of a conversation. The view follows a growing answer only while the reader is at its end. */

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";
import { MessageView } from "./message.js";
import { outsideContext } from "./conversations.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */
/** @typedef {import("./answering.js").Run} Run */

const NEAR = 48;
/** Pixels from the end that still count as there. */

export class Thread {
  /** @param {import("./message.js").Actions} actions */
  constructor(actions) {
    this.actions = actions;
    this.scroller = byId("scroller");
    this.list = byId("messages");
    this.jump = byId("jump");
    /** @type {Map<string, MessageView>} */
    this.views = new Map();
    /** @type {Conversation | null} */
    this.conversation = null;
    /** @type {Run | undefined} */
    this.run = undefined;
    this.atEnd = true;
    this.frame = 0;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.jump.addEventListener("click", () => {
      this.toEnd();
      byId("input").focus({ preventScroll: true });
    });
    const follow = new ResizeObserver(() => {
      if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
      else this.#scrolled();
    });
    follow.observe(this.list);
    follow.observe(this.scroller);
  }

  /**
   * Show a conversation as it is now.
   * @param {Conversation} conversation
   * @param {Run | undefined} run its answer on the way
   */
  show(conversation, run) {
    if (conversation !== this.conversation) {
      this.views.clear();
      this.list.replaceChildren();
      this.conversation = conversation;
      this.toEnd();
    }
    this.run = run;
    this.#update();
  }

  /** Show what has come of an answer, with the next frame. */
  grow() {
    this.frame ||= requestAnimationFrame(() => {
      const last = this.conversation?.messages.at(-1);
      this.frame = 0;
      if (last && this.run?.message === last) this.#updateOne(last, true, outsideContext(this.conversation));
    });
  }

  toEnd() {
    this.atEnd = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.jump.hidden = true;
  }

  /** Edit the newest question. */
  editLast() {
    const question = this.conversation?.messages.findLast(({ role }) => role === "user");
    if (question && this.run === undefined) this.views.get(question.id)?.edit();
  }

  #update() {
    const { messages } = this.conversation;
    const ids = new Set(messages.map(({ id }) => id));
    for (const [id, view] of this.views) {
      if (ids.has(id)) continue;
      view.element.remove();
      this.views.delete(id);
    }
    this.list.querySelector(".context-edge")?.remove();
    const outside = outsideContext(this.conversation);
    messages.forEach((message, i) => {
      const view = this.#updateOne(message, i === messages.length - 1, outside, i);
      if (this.list.children[i] !== view.element) this.list.insertBefore(view.element, this.list.children[i] ?? null);
    });
    if (outside > 0) this.list.insertBefore(contextEdge(outside), this.list.children[outside]);
  }

  /**
   * @param {import("./conversations.js").Message} message
   * @param {boolean} isLast
   * @param {number} outside
   * @param {number} [position]
   */
  #updateOne(message, isLast, outside, position = Infinity) {
    const view = this.views.get(message.id) ?? new MessageView(message, this.actions);
    this.views.set(message.id, view);
    view.message = message;
    const run = this.run?.message === message ? this.run : undefined;
    view.update({ run, isLast, outside: position < outside, busy: this.run !== undefined });
    return view;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    this.jump.hidden = this.atEnd;
  }
}

/** @param {number} n messages above that the model does not see */
function contextEdge(n) {
  return h("p", { class: "context-edge" }, h("span", {}, t("outsideContext", { n })));
}
