/** The dialogs that ask or tell something: the API key, a conversation's name, the model and the context. */

import { setApiKey } from "./api.js";
import { outsideContext } from "./conversations.js";
import { byId, h } from "./dom.js";
import { decimal, t } from "./i18n.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */
/** @typedef {import("./api.js").Model} Model */

/** Let every dialog close by its buttons and by a click beside it. */
export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const { target } = event;
      if (target === dialog || /** @type {HTMLElement} */ (target).closest("[data-close]")) dialog.close();
    });
  }
}

/**
 * @param {string} id
 * @returns {HTMLDialogElement}
 */
export function openDialog(id) {
  const dialog = /** @type {HTMLDialogElement} */ (byId(id));
  if (!dialog.open) dialog.showModal();
  return dialog;
}

/**
 * Ask in a dialog that has one field, and give what was entered; null when it was closed.
 * @param {string} id of the dialog, whose form and input follow its name
 * @param {string} value
 * @returns {Promise<string | null>}
 */
function ask(id, value) {
  const dialog = openDialog(id);
  const form = /** @type {HTMLFormElement} */ (byId(`${id}-form`));
  const input = /** @type {HTMLInputElement} */ (byId(`${id}-input`));
  input.value = value;
  input.select();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      resolve(input.value.trim() || null);
      dialog.close();
    };
    dialog.addEventListener("close", () => resolve(null), { once: true });
  });
}

/**
 * @param {string} title
 */
export function askTitle(title) {
  return ask("rename", title);
}

/**
 * Ask for the API key. Whether one was entered.
 * @param {boolean} refused whether the last one was wrong
 */
export async function askKey(refused) {
  byId("key-refused").hidden = !refused;
  const key = await ask("key", "");
  if (key !== null) setApiKey(key);
  return key !== null;
}

const LICENCES = { "cc-by-nc-4.0": "CC BY-NC 4.0", "apache-2.0": "Apache-2.0", mit: "MIT" };

/**
 * A licence's name as people write it, and whether it forbids commercial use.
 * @param {Model} model
 */
export function licenceText({ license }) {
  const name = LICENCES[license] ?? (license || t("licenceUnknown"));
  return license.includes("-nc") ? `${name} (${t("nonCommercial")})` : name;
}

/**
 * @param {Model | null} model
 * @param {Conversation} conversation
 */
export function openAbout(model, conversation) {
  byId("about-context").replaceChildren(...contextRows(model, conversation));
  byId("about-model").replaceChildren(...modelRows(model));
  openDialog("about");
}

/**
 * @param {string} key
 * @param {string} value
 * @param {string | null} [kind]
 */
function row(key, value, kind = null) {
  return h("div", { class: kind }, h("dt", {}, t(key)), h("dd", {}, value));
}

/**
 * @param {Model | null} model
 * @param {Conversation} conversation
 */
function contextRows(model, conversation) {
  const { usage, messages } = conversation;
  const stats = messages.findLast((message) => message.stats)?.stats;
  const rows = [];
  if (model) rows.push(row("modelContext", t("tokens", { n: model.context_length })));
  if (usage) {
    rows.push(row("contextUsed", t("tokens", { n: usage.prompt + usage.answer })));
    rows.push(row("contextPrompt", t("tokens", { n: usage.prompt })));
    rows.push(row("contextCached", t("tokens", { n: usage.cached })));
    rows.push(row("contextAnswer", t("tokens", { n: usage.answer })));
  }
  const outside = outsideContext(conversation);
  if (outside > 0) rows.push(row("contextDropped", t("messagesCount", { n: outside })));
  if (stats) rows.push(row("promptSpeed", t("speed", { speed: decimal(stats.promptSpeed, 1) })));
  return rows;
}

/** @param {Model | null} model */
function modelRows(model) {
  if (model === null) return [row("modelName", t("noModel"))];
  return [
    row("modelName", model.id),
    row("modelLicence", licenceText(model)),
    row("modelAuthors", model.attribution, "long"),
    row("modelParallel", String(model.max_parallel)),
  ];
}
