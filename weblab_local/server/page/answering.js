/** Asking the server, and writing its answer into the conversation as it comes. */

import { ApiError, fetchModel, streamAnswer } from "./api.js";
import { history, newMessage } from "./conversations.js";
import { enter, isApp } from "./desktop.js";
import { Turns } from "./turns.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */
/** @typedef {import("./conversations.js").Message} Message */

const SAVE_INTERVAL = 1000;
/** Milliseconds between two saves of a running answer: what there is of it survives the tab. */

const WAIT = 200;
/** Milliseconds after which it is said that an answer waits for another. */

/**
 * @typedef {object} Run An answer on its way.
 * @property {Message} message
 * @property {AbortController} controller
 * @property {boolean} waits whether another answer comes first
 * @property {{ done: number, total: number } | null} progress tokens of the prompt that were read
 * @property {Message[]} sent
 */

/**
 * Answers, at most one in each conversation. Events, with the conversation as `detail`: "start", "progress" (text or
 * prompt), "end"; and "model", when the server has said what model it has.
 */
export class Answering extends EventTarget {
  /** @param {import("./settings.js").Settings} settings */
  constructor(settings) {
    super();
    /** @type {import("./conversations.js").Conversations | null} where answers are saved */
    this.conversations = null;
    /** @type {import("./api.js").Model | null} */
    this.model = null;
    /** @type {Map<Conversation, Run>} */
    this.runs = new Map();
    this.turns = new Turns();
    this.settings = settings;
  }

  /** Ask the server for its model, once an app has let this page in. Throws ApiError. */
  async connect() {
    if (isApp) await enter();
    this.model = await fetchModel();
    this.dispatchEvent(new Event("model"));
  }

  /**
   * Answer the question that a conversation ends with. Resolves when the answer has ended, in whatever way. Throws where
   * one is on its way already: two would write over each other, and only the second could be stopped.
   * @param {Conversation} conversation
   */
  async answer(conversation) {
    if (this.runs.has(conversation)) throw new Error("The conversation is being answered.");
    const sent = history(conversation);
    const run = { message: newMessage("assistant", ""), controller: new AbortController(), waits: false, progress: null, sent };
    conversation.messages.push(run.message);
    conversation.system = this.settings.values.system;
    conversation.updated = Date.now();
    this.runs.set(conversation, run);
    this.#tell("start", conversation);
    this.conversations.save(conversation);
    const message = run.message;
    const wait = (/** @type {boolean} */ waits) => {
      clearTimeout(timer);
      run.waits = waits;
      this.#tell("progress", conversation);
    };
    const timer = setTimeout(wait, WAIT, true);
    try {
      await this.turns.run(run.controller.signal, () => {
        wait(false);
        return this.#stream(conversation, run);
      });
      message.finish ??= "stop";
    } catch (error) {
      if (run.controller.signal.aborted) message.finish ??= "stopped";
      else {
        const { kind, message: said, retryAfter } = error instanceof ApiError ? error : new ApiError("server", String(error));
        message.finish = "error";
        message.error = { kind, message: said, retryAt: Date.now() + retryAfter * 1000 };
      }
    }
    clearTimeout(timer);
    conversation.updated = Date.now();
    this.runs.delete(conversation);
    this.#tell("end", conversation);
    if (this.conversations.all.has(conversation.id)) this.conversations.save(conversation);
  }

  /** @param {Conversation} conversation */
  stop(conversation) {
    this.runs.get(conversation)?.controller.abort();
  }

  /** End all answers and keep what there is of them: the page is about to go. */
  leave() {
    for (const [conversation, { message, controller }] of this.runs) {
      message.finish ??= "interrupted";
      controller.abort();
      this.conversations.save(conversation);
    }
  }

  /**
   * What is sent to have messages answered.
   * @param {string} system the system message; may be empty
   * @param {Message[]} sent
   */
  body(system, sent) {
    const first = system.trim() === "" ? [] : [{ role: "system", content: system }];
    const messages = [...first, ...sent.map(({ role, content }) => ({ role, content }))];
    return { messages, ...this.settings.request() };
  }

  /**
   * @param {Conversation} conversation
   * @param {Run} run
   */
  async #stream(conversation, run) {
    if (this.model === null) await this.connect();
    let saved = Date.now();
    for await (const chunk of streamAnswer(this.body(conversation.system, run.sent), run.controller.signal)) {
      if (run.controller.signal.aborted) throw run.controller.signal.reason;
      this.#take(conversation, run, chunk);
      this.#tell("progress", conversation);
      if (Date.now() - saved > SAVE_INTERVAL) {
        this.conversations.save(conversation);
        saved = Date.now();
      }
    }
  }

  /**
   * @param {Conversation} conversation
   * @param {Run} run
   * @param {any} chunk
   */
  #take(conversation, run, chunk) {
    const { message } = run;
    const choice = chunk.choices?.[0];
    message.model = chunk.model;
    if (chunk.progress) run.progress = chunk.progress;
    if (choice?.delta?.content) message.content += choice.delta.content;
    if (choice?.finish_reason) message.finish = choice.finish_reason;
    if (Number.isInteger(chunk.weblab?.dropped_messages)) {
      const dropped = chunk.weblab.dropped_messages;
      conversation.contextStart = dropped > 0 ? (run.sent[dropped]?.id ?? null) : null;
    }
    if (chunk.weblab?.timed_out) message.finish = "timeout";
    if (chunk.weblab?.generation_speed !== undefined) {
      const { generation_speed: speed, prompt_speed: promptSpeed, time_to_first_token: firstToken } = chunk.weblab;
      message.stats = { speed, promptSpeed, firstToken, tokens: 0 };
    }
    if (chunk.usage) {
      const { prompt_tokens: prompt, completion_tokens: answer, prompt_tokens_details: details } = chunk.usage;
      conversation.usage = { prompt, answer, cached: details?.cached_tokens ?? 0 };
      if (message.stats) message.stats.tokens = answer;
    }
  }

  /**
   * @param {string} event
   * @param {Conversation} conversation
   */
  #tell(event, conversation) {
    this.dispatchEvent(new CustomEvent(event, { detail: conversation }));
  }
}
