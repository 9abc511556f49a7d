/** Conversations as files: Markdown to read, JSON for programs. */

import { h } from "./dom.js";
import { language, t } from "./i18n.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

export const CONVERSATION = "weblab-local/conversation";
export const CONVERSATIONS = "weblab-local/conversations";
/** The formats' names, in the files. */

/** @param {Conversation} conversation */
export function asJson(conversation) {
  return `${JSON.stringify(file(conversation), null, 2)}\n`;
}

/** @param {Conversation} conversation */
function file(conversation) {
  const { title, created, updated, system, messages } = conversation;
  const date = (time) => new Date(time).toISOString();
  const turns = messages.map(({ role, content, time, model, finish, stats }) => ({
    role, content, time: date(time), model, finish_reason: finish, stats,
  }));
  const head = { format: CONVERSATION, version: 1, title, created: date(created), updated: date(updated) };
  return { ...head, system: system || undefined, messages: turns };
}

/** @param {Conversation} conversation */
export function asMarkdown(conversation) {
  const { title, updated, system, messages } = conversation;
  const model = messages.findLast((message) => message.model)?.model;
  const parts = [`# ${title || t("untitled")}`, [new Date(updated).toLocaleString(language()), model].filter(Boolean).join(", ")];
  if (system) parts.push(`## ${t("system")}`, system);
  for (const { role, content } of messages) {
    if (content !== "") parts.push(`## ${t(role === "user" ? "you" : "answer")}`, content.trim());
  }
  return `${parts.join("\n\n")}\n`;
}

/**
 * Have the browser save a conversation as a file.
 * @param {Conversation} conversation
 * @param {"json" | "md"} format
 */
export function download(conversation, format) {
  const [text, type] = format === "json" ? [asJson(conversation), "application/json"] : [asMarkdown(conversation), "text/markdown"];
  const name = (conversation.title || t("untitled")).replace(/[\\/:*?"<>|\u0000-\u001f]/g, " ").trim().slice(0, 60);
  save(`${name || "conversation"}.${format}`, text, type);
}

/**
 * Have the browser save all conversations as one file, for `importing.js`.
 * @param {Conversation[]} conversations
 */
export function downloadAll(conversations) {
  const all = { format: CONVERSATIONS, version: 1, conversations: conversations.map(file) };
  save(`weblab-local ${new Date().toISOString().slice(0, 10)}.json`, `${JSON.stringify(all)}\n`, "application/json");
}

/**
 * @param {string} name
 * @param {string} text
 * @param {string} type
 */
function save(name, text, type) {
  const href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = h("a", { href, download: name, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
