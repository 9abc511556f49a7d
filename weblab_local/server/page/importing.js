/** Conversations from files that were exported, here or on another page: one, or all of a browser. */

import { newConversation, newMessage } from "./conversations.js";
import { CONVERSATION, CONVERSATIONS, asJson } from "./exporting.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

const FINISHES = ["stop", "length", "timeout", "stopped", "interrupted"];

/**
 * The conversations of a file. Throws an Error for one that is no export.
 * @param {string} text
 * @returns {Conversation[]}
 */
export function fromJson(text) {
  const file = JSON.parse(text.replace(/^\ufeff/, ""));
  if (file?.format === CONVERSATION) return [conversation(file)];
  if (file?.format !== CONVERSATIONS || !Array.isArray(file.conversations)) throw new Error("not an export");
  return file.conversations.map(conversation);
}

/**
 * Those that are not there yet, by what they would be exported as.
 * @param {Conversation[]} found
 * @param {Iterable<Conversation>} known
 */
export function unknown(found, known) {
  const texts = new Set([...known].map(asJson));
  return found.filter((each) => !texts.has(asJson(each)));
}

/** @param {any} file */
function conversation(file) {
  if (!Array.isArray(file?.messages) || file.messages.length === 0) throw new Error("no messages");
  const made = newConversation();
  made.created = time(file.created) ?? made.created;
  made.updated = time(file.updated) ?? made.created;
  if (typeof file.title === "string" && file.title !== "") Object.assign(made, { title: file.title, named: true });
  if (typeof file.system === "string") made.system = file.system;
  made.messages = file.messages.map(message);
  return made;
}

/** @param {any} given */
function message({ role, content, time: said, model, finish_reason: finish, stats }) {
  if (!["user", "assistant"].includes(role) || typeof content !== "string") throw new Error("not a message");
  const made = newMessage(role, content);
  made.time = time(said) ?? made.time;
  if (typeof model === "string") made.model = model;
  if (role === "assistant") made.finish = FINISHES.includes(finish) ? finish : "stop";
  if (stats && ["speed", "promptSpeed", "firstToken", "tokens"].every((name) => Number.isFinite(stats[name]))) made.stats = stats;
  return made;
}

/** @param {unknown} date */
function time(date) {
  const found = typeof date === "string" ? Date.parse(date) : NaN;
  return Number.isNaN(found) ? null : found;
}
