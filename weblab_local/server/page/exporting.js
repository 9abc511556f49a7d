/** Conversations as files: Markdown to read, JSON for programs. */

import { h } from "./dom.js";
import { language, t } from "./i18n.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

/** @param {Conversation} conversation */
export function asJson(conversation) {
  const { title, created, updated, system, messages } = conversation;
  const date = (time) => new Date(time).toISOString();
  const turns = messages.map(({ role, content, time, model, finish, stats }) => ({
    role, content, time: date(time), model, finish_reason: finish, stats,
  }));
  const file = { format: "weblab-local/conversation", version: 1, title, created: date(created), updated: date(updated) };
  return `${JSON.stringify({ ...file, system: system || undefined, messages: turns }, null, 2)}\n`;
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
  const href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = h("a", { href, download: `${name || "conversation"}.${format}`, hidden: true });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
