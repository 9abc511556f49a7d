/** Conversations, each kept in the browser's storage under a name of its own, so that two tabs do not meet in one. */

import { onOtherTab, storage } from "./storage.js";

const NAME = "conversation.";
const TITLE_LENGTH = 80;
const MOST_SENT = 300_000;
/** Characters: in UTF-8 they stay below the megabyte that the server reads at most. */
const MOST_MESSAGES = 2047;
/** The server takes 2,048, the system message included. */

/**
 * @typedef {"stop" | "length" | "timeout" | "stopped" | "interrupted" | "error"} Finish
 *   why an answer ended: the server's three reasons; stopped here; the page was closed; see `error`
 * @typedef {{ kind: import("./api.js").ErrorKind, message: string, retryAt: number }} Failure
 * @typedef {{ speed: number, promptSpeed: number, firstToken: number, tokens: number }} Stats
 *   tokens per second, seconds, and the answer's tokens
 * @typedef {{ id: string, role: "user" | "assistant", content: string, time: number, model?: string, finish?: Finish,
 *   error?: Failure, stats?: Stats }} Message
 * @typedef {{ prompt: number, cached: number, answer: number }} Usage tokens of the last request
 */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {boolean} named whether a person chose the title
 * @property {number} created milliseconds since 1970, as is `updated`
 * @property {number} updated
 * @property {number} revision changes with every save
 * @property {Message[]} messages
 * @property {string | null} contextStart the first message that the model was given last time, if not the very first
 * @property {Usage | null} usage
 * @property {string} system the system message of the last request
 */

/** A name that is unique; crypto.randomUUID is missing where the page came over plain HTTP. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {"user" | "assistant"} role
 * @param {string} content
 * @returns {Message}
 */
export function newMessage(role, content) {
  return { id: newId(), role, content, time: Date.now() };
}

/** @returns {Conversation} */
export function newConversation() {
  const now = Date.now();
  return {
    id: newId(), title: "", named: false, created: now, updated: now, revision: 0,
    messages: [], contextStart: null, usage: null, system: "",
  };
}

/**
 * The first line of the first message, for a conversation that nobody has named.
 * @param {Conversation} conversation
 */
function titleOf(conversation) {
  const line = conversation.messages[0]?.content.trim().split("\n")[0] ?? "";
  return [...line].slice(0, TITLE_LENGTH).join("");
}

/**
 * The messages that go to the model: questions with their answers, and the newest question. A question that got no
 * answer is left out, so that the two sides alternate; and of a very long conversation, what no context holds.
 * @param {Conversation} conversation whose last message is a question
 */
export function history(conversation) {
  const isAnswered = (question, answer) => question?.role === "user" && answer?.role === "assistant" && answer.content !== "";
  const turns = conversation.messages.filter((message, i, all) =>
    message.role === "user" ? i === all.length - 1 || isAnswered(message, all[i + 1]) : isAnswered(all[i - 1], message),
  );
  let first = turns.length - 1;
  let length = turns[first].content.length;
  while (first > 1 && turns.length - first + 2 <= MOST_MESSAGES) {
    length += turns[first - 1].content.length + turns[first - 2].content.length;
    if (length > MOST_SENT) break;
    first -= 2;
  }
  return turns.slice(first);
}

/**
 * How many messages the model no longer sees.
 * @param {Conversation} conversation
 */
export function outsideContext(conversation) {
  return Math.max(0, conversation.messages.findIndex(({ id }) => id === conversation.contextStart));
}

/**
 * A conversation as it was stored, or null for anything else.
 * @param {string | null} text
 * @returns {Conversation | null}
 */
function parse(text) {
  let stored;
  try {
    stored = JSON.parse(text ?? "");
  } catch {
    return null;
  }
  const isMessage = (message) =>
    typeof message?.id === "string" && ["user", "assistant"].includes(message.role) && typeof message.content === "string";
  if (typeof stored?.id !== "string" || !Array.isArray(stored.messages) || !stored.messages.every(isMessage)) return null;
  const fresh = newConversation();
  for (const [name, value] of Object.entries(fresh)) {
    if (value !== null && typeof stored[name] !== typeof value) stored[name] = value;
  }
  return { ...fresh, ...stored };
}

/**
 * All conversations. Events: "change" (the list, or one of its conversations in another tab), "forked" (one was saved
 * under another id, because another tab had changed it), "full" (one could not be saved).
 */
export class Conversations extends EventTarget {
  /** @param {(conversation: Conversation) => boolean} isBusy whether this tab is writing to it */
  constructor(isBusy) {
    super();
    /** @type {Map<string, Conversation>} */
    this.all = new Map();
    /** Those that could not be stored; that is said once. @type {Set<Conversation>} */
    this.unstored = new Set();
    /** How many were stored and could not be read. They are left as they are. */
    this.damaged = 0;
    for (const name of storage.names(NAME)) {
      const conversation = parse(storage.read(name));
      if (conversation === null || name !== NAME + conversation.id) this.damaged += 1;
      else this.all.set(conversation.id, conversation);
    }
    for (const { messages } of this.all.values()) {
      const last = messages.at(-1);
      if (last?.role === "assistant" && last.finish === undefined) last.finish = "interrupted";
    }
    onOtherTab((name) => {
      const names = name === null ? [...this.all.keys()].map((id) => NAME + id) : [name];
      for (const each of names.filter((each) => each.startsWith(NAME))) this.#reload(each.slice(NAME.length), isBusy);
    });
  }

  /** The conversations, those last used first. */
  list() {
    return [...this.all.values()].sort((a, b) => b.updated - a.updated);
  }

  /**
   * Keep a conversation. What another tab has made of it since is never overwritten: then it goes on under a new id.
   * @param {Conversation} conversation
   */
  save(conversation) {
    const stored = parse(storage.read(NAME + conversation.id));
    if (stored !== null && stored.revision !== conversation.revision) {
      this.all.set(stored.id, stored);
      conversation.id = newId();
      this.dispatchEvent(new Event("forked"));
    }
    if (!conversation.named) conversation.title = titleOf(conversation);
    conversation.revision = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
    this.all.set(conversation.id, conversation);
    const isStored = storage.write(NAME + conversation.id, JSON.stringify(conversation));
    if (!isStored && !this.unstored.has(conversation)) this.dispatchEvent(new Event("full"));
    this.unstored[isStored ? "delete" : "add"](conversation);
    this.dispatchEvent(new Event("change"));
  }

  /** @param {Conversation} conversation */
  remove(conversation) {
    this.all.delete(conversation.id);
    storage.remove(NAME + conversation.id);
    this.dispatchEvent(new Event("change"));
  }

  /**
   * Take over what another tab has stored or removed, into the same object.
   * @param {string} id
   * @param {(conversation: Conversation) => boolean} isBusy
   */
  #reload(id, isBusy) {
    const known = this.all.get(id);
    if (known !== undefined && isBusy(known)) return;
    const text = storage.read(NAME + id);
    const stored = parse(text);
    if (stored !== null) this.all.set(id, known === undefined ? stored : Object.assign(known, stored));
    else if (text === null) this.all.delete(id);
    this.dispatchEvent(new Event("change"));
  }
}
