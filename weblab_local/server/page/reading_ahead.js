/** What is typed is read by the model while it is typed, so that its answer begins at once. */

import { request } from "./api.js";
import { history, newMessage } from "./conversations.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

const TYPING_PAUSE = 100;
const THINKING_PAUSE = 500;
/** Milliseconds after a key until what is typed is sent, and until it is taken for all. */

export class ReadingAhead {
  /** @param {import("./answering.js").Answering} answering */
  constructor(answering) {
    this.answering = answering;
    this.timer = 0;
    this.controller = new AbortController();
  }

  /**
   * Have a conversation read, and what is typed in it by now.
   * @param {Conversation} conversation
   * @param {string} text
   * @param {boolean} isComposing whether an input method is converting: then more is going to change
   */
  changed(conversation, text, isComposing) {
    this.stop();
    const { model, runs } = this.answering;
    if (!model?.reads_ahead || runs.has(conversation)) return;
    this.timer = setTimeout(() => {
      this.#read(conversation, text, false);
      if (text.trim() === "" || isComposing) return;
      this.timer = setTimeout(() => this.#read(conversation, text, true), THINKING_PAUSE - TYPING_PAUSE);
    }, TYPING_PAUSE);
  }

  /** Nothing more of what was typed is read. */
  stop() {
    clearTimeout(this.timer);
    this.controller.abort();
  }

  /**
   * @param {Conversation} conversation
   * @param {string} text
   * @param {boolean} finished
   */
  #read(conversation, text, finished) {
    const asked = { ...conversation, messages: [...conversation.messages, newMessage("user", text.trimEnd())] };
    const { messages, max_tokens } = this.answering.body(this.answering.settings.values.system, history(asked));
    this.controller = new AbortController();
    request("v1/read_ahead", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages, max_tokens, finished }),
      signal: this.controller.signal,
    }).catch(() => {}); // nobody asked for it; whoever asks is told what is wrong
  }
}
