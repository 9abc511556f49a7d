/** The page: which conversation is shown, and what each control does. */

import { ApiError, takeKeyFromAddress } from "./api.js";
import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { Conversations, newConversation, newMessage } from "./conversations.js";
import { enter, isApp, stayPresent, takeTicketFromAddress } from "./desktop.js";
import { askKey, askTitle, licenceText, openAbout, openDialog, prepareDialogs } from "./dialogs.js";
import { byId, h, isTouchOnly } from "./dom.js";
import { download, downloadAll } from "./exporting.js";
import { failureTexts } from "./failure.js";
import { setLanguage, t, translatePage } from "./i18n.js";
import { fromJson, unknown } from "./importing.js";
import { openMenu } from "./menu.js";
import { ModelChoice } from "./model_choice.js";
import { announce, notify } from "./notices.js";
import { ReadingAhead } from "./reading_ahead.js";
import { Settings } from "./settings.js";
import { SettingsDialog } from "./settings_dialog.js";
import { listenForShortcuts, showShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { storage, tabStorage } from "./storage.js";
import { Thread } from "./thread.js";
import { prepareSwitches } from "./switches.js";
import { showSuggestions } from "./welcome.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */
/** @typedef {import("./conversations.js").Message} Message */

const settings = new Settings();
const answering = new Answering(settings);
const isRunning = (/** @type {Conversation} */ conversation) => answering.runs.has(conversation);
const conversations = new Conversations(isRunning);
answering.conversations = conversations;

const readingAhead = new ReadingAhead(answering);
const settingsDialog = new SettingsDialog(settings);
const sidebar = new Sidebar({ open, menu: conversationMenu });
const thread = new Thread({ edit, regenerate, openSettings: () => settingsDialog.open(), enterKey, chooseModel });
const composer = new Composer({ send, stop: () => answering.stop(current), editLast: () => thread.editLast(), changed });

const choice = new ModelChoice({ changed: connect });

/** The conversation on the screen; a new one is kept once something was said in it. */
let current = lastOpen();
/** Why the server did not say what model it has. @type {import("./api.js").ApiError | null} */
let trouble = null;

/** What this tab showed before it was reloaded; for a conversation in which nothing was said yet that is its draft. */
function lastOpen() {
  const id = tabStorage.read("current");
  return id === null ? newConversation() : (conversations.all.get(id) ?? { ...newConversation(), id });
}

/** @param {Conversation} conversation */
function open(conversation) {
  current = conversation;
  tabStorage.write("current", conversation.id);
  composer.open(conversation.id);
  sidebar.closeDrawer();
  show();
  if (!isTouchOnly()) composer.area.focus();
}

/**
 * Something else is in the field, or to be asked: have it read.
 * @param {string} text
 * @param {boolean} isComposing
 */
function changed(text, isComposing) {
  readingAhead.changed(current, text, isComposing);
}

/**
 * Ask something, unless an answer is on its way. Whether it was asked.
 * @param {string} text
 */
function send(text) {
  if (isRunning(current)) return false;
  current.messages.push(newMessage("user", text));
  announce(t("announceSent"));
  ask(current);
  thread.toEnd();
  return true;
}

/**
 * Have a conversation's last question answered, whatever may come of it.
 * @param {Conversation} conversation
 */
async function ask(conversation) {
  await answering.answer(conversation);
  const { finish, error, content } = conversation.messages.at(-1) ?? {};
  if (finish === "error") announce(failureTexts(error.kind).title);
  else if (finish === "stopped") announce(t("announceStopped"));
  else announce(t("announceAnswer", { text: content.trim() || t("emptyAnswer") }));
  if (conversation !== current) return;
  if (error?.kind === "unauthorized" && !isApp) enterKey();
  if (error?.kind === "noModel") chooseModel();
}

/**
 * Put another text into an old message's place, unless an answer is on its way. What followed goes, and can be brought
 * back. Whether it was done.
 * @param {Message} message
 * @param {string} text
 */
function edit(message, text) {
  if (isRunning(current)) return false;
  const conversation = current;
  const before = [...conversation.messages];
  conversation.messages.splice(before.indexOf(message));
  if (before.length - conversation.messages.length > 1) {
    const undo = () => {
      answering.stop(conversation);
      conversation.messages.splice(0, Infinity, ...before);
      conversations.save(conversation);
      show();
    };
    notify(t("edited"), { label: t("undo"), run: undo });
  }
  send(text);
  composer.area.focus();
  return true;
}

/** Answer the last question once more. */
function regenerate() {
  if (isRunning(current)) return;
  if (current.messages.at(-1)?.role === "assistant") current.messages.pop();
  ask(current);
  thread.toEnd();
  composer.area.focus();
}

/** Ask for the API key, and go on with what it was missing for. */
async function enterKey() {
  if (!(await askKey(Boolean(tabStorage.read("key"))))) return;
  await connect();
  if (trouble === null && current.messages.at(-1)?.error?.kind === "unauthorized") regenerate();
}

/** Have an app's model chosen. */
function chooseModel() {
  /** @type {HTMLDialogElement} */ (byId("about")).close();
  choice.open();
}

/** Find out what model answers; ask for the key if one is missing, and in an app for a model. */
async function connect() {
  const before = trouble?.kind;
  try {
    if (isApp) await connectToApp();
    await answering.connect();
  } catch (error) {
    trouble = /** @type {import("./api.js").ApiError} */ (error);
    show();
    if (trouble.kind === "unauthorized" && !isApp) enterKey();
    if (trouble.kind === "noModel" && before !== "noModel") chooseModel();
  }
}

/** Get in, be counted, and find out whether a model is loaded. */
async function connectToApp() {
  await enter();
  const isLoaded = await choice.look();
  stayPresent(connect);
  if (!isLoaded) throw new ApiError("noModel");
}

/**
 * @param {Conversation} conversation
 * @param {HTMLElement} button
 */
function conversationMenu(conversation, button) {
  const rename = async () => {
    const title = await askTitle(conversation.title);
    if (title === null) return;
    Object.assign(conversation, { title, named: true });
    conversations.save(conversation);
  };
  openMenu(button, [
    { label: t("rename"), icon: "edit", run: rename },
    { label: t("exportMarkdown"), icon: "download", run: () => download(conversation, "md") },
    { label: t("exportJson"), icon: "download", run: () => download(conversation, "json") },
    { label: t("deleteConversation"), icon: "trash", danger: true, run: () => remove(conversation) },
  ]);
}

/** Conversations of this browser as a file, and of files into this browser. */
function transferMenu() {
  const files = /** @type {HTMLInputElement} */ (byId("import"));
  openMenu(byId("transfer"), [
    { label: t("importFiles"), icon: "upload", run: () => files.click() },
    { label: t("exportAll"), icon: "download", run: () => downloadAll(conversations.list()) },
  ]);
}

/**
 * Keep the conversations of exported files, and show the newest of them.
 * @param {File[]} files
 */
async function take(files) {
  const found = [];
  for (const file of files) {
    try {
      found.push(...fromJson(await file.text()));
    } catch {
      notify(t("importFailed", { name: file.name }));
    }
  }
  if (found.length === 0) return;
  const fresh = unknown(found, conversations.all.values());
  for (const conversation of fresh) conversations.save(conversation);
  notify(fresh.length > 0 ? t("imported", { n: fresh.length }) : t("importedNothing"));
  if (fresh.length > 0) open(fresh.reduce((a, b) => (b.updated > a.updated ? b : a)));
}

/** @param {Conversation} conversation */
function remove(conversation) {
  answering.stop(conversation);
  conversations.remove(conversation);
  if (conversation === current) open(newConversation());
  const undo = () => {
    conversations.save(conversation);
    open(conversation);
  };
  notify(t("deleted", { title: conversation.title || t("untitled") }), { label: t("undo"), run: undo });
}

/** @param {number} step to the conversation so many places further down */
function move(step) {
  const list = conversations.list();
  const at = list.indexOf(current);
  const next = list[at === -1 ? 0 : at + step];
  if (next) open(next);
}

/** Show everything as it is now. */
function show() {
  const run = answering.runs.get(current);
  const isEmpty = current.messages.length === 0;
  const title = isEmpty ? t("newConversation") : current.title || t("untitled");
  byId("title").textContent = title;
  document.title = isEmpty ? "weblab-local" : `${title} - weblab-local`;
  byId("actions").hidden = isEmpty;
  byId("welcome").hidden = !isEmpty;
  thread.show(current, run);
  composer.setRunning(run !== undefined);
  sidebar.show(conversations.list(), current, isRunning);
  showModel();
  showBudget();
}

function showModel() {
  const { model } = answering;
  const line = model ? [h("strong", {}, model.id), h("span", {}, licenceText(model))] : [];
  if (model?.attribution.includes(model.owned_by)) line.push(h("span", {}, model.owned_by)); // else nobody is known
  byId("model").replaceChildren(...(trouble ? [h("span", { class: "trouble" }, failureTexts(trouble.kind).title)] : line));
  byId("model").hidden = !trouble && !model;
  byId("base-model").hidden = model?.instruction_tuned !== false;
  const isLocal = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
  byId("welcome-where").textContent = isLocal ? t("welcomeLocal") : t("welcomeRemote", { host: location.host });
}

function showBudget() {
  const total = answering.model?.context_length ?? 0;
  const used = current.usage ? current.usage.prompt + current.usage.answer : 0;
  const label = t("budget", { used, total });
  const button = byId("budget");
  button.hidden = total === 0;
  button.title = label;
  button.setAttribute("aria-label", label);
  byId("budget-used").textContent = used.toLocaleString();
  byId("budget-total").textContent = ` / ${total.toLocaleString()}`;
  byId("budget-arc").setAttribute("stroke-dasharray", `${total > 0 ? Math.min(100, (used / total) * 100) : 0} 100`);
}

/** Everything again, in the language that was chosen. */
function speak() {
  translatePage();
  settingsDialog.build();
  showSuggestions((text) => send(text));
  showShortcuts();
  choice.show();
  show();
}

answering.addEventListener("start", () => {
  readingAhead.stop();
  show();
});
answering.addEventListener("end", (event) => {
  show();
  if (/** @type {CustomEvent} */ (event).detail === current) composer.tell();
});
answering.addEventListener("progress", (event) => {
  if (/** @type {CustomEvent} */ (event).detail === current) thread.grow();
});
answering.addEventListener("model", () => {
  trouble = null;
  show();
  composer.tell();
});
conversations.addEventListener("change", () => {
  const isGone = current.messages.length > 0 && !isRunning(current) && !conversations.all.has(current.id);
  if (isGone) open(newConversation());
  else show();
});
conversations.addEventListener("forked", () => {
  tabStorage.write("current", current.id);
  notify(t("forked"));
});
conversations.addEventListener("full", () => notify(t(storage.available ? "storageFull" : "storageOff")));

for (const id of ["new", "new-narrow"]) byId(id).addEventListener("click", () => open(newConversation()));
byId("actions").addEventListener("click", () => conversationMenu(current, byId("actions")));
byId("transfer").addEventListener("click", transferMenu);
byId("import").addEventListener("change", (event) => {
  const { target } = /** @type {{ target: HTMLInputElement }} */ (/** @type {unknown} */ (event));
  take([...target.files]);
  target.value = ""; // the same file can be chosen again
});
byId("open-settings").addEventListener("click", () => settingsDialog.open());
byId("open-shortcuts").addEventListener("click", () => openDialog("shortcuts"));
byId("budget").addEventListener("click", () => openAbout(answering.model, current));
byId("model").addEventListener("click", () => {
  if (trouble?.kind === "noModel") chooseModel();
  else if (trouble) connect();
  else openAbout(answering.model, current);
});
byId("about-app").hidden = !isApp;
byId("change-model").addEventListener("click", chooseModel);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  composer.area.focus();
});
addEventListener("hashchange", () => {
  if (takeKeyFromAddress() || takeTicketFromAddress()) connect();
});
addEventListener("focus", () => {
  if (trouble?.kind === "unreachable" || isApp) connect(); // another tab may have changed an app's model
});
addEventListener("pagehide", () => answering.leave());
listenForShortcuts({
  stop: () => {
    if (sidebar.isDrawerOpen) sidebar.closeDrawer();
    else answering.stop(current);
  },
  startNew: () => open(newConversation()),
  openSettings: () => settingsDialog.open(),
  openHelp: () => openDialog("shortcuts"),
  move,
});
prepareDialogs();
prepareSwitches((chosen) => {
  setLanguage(chosen);
  speak();
});
takeKeyFromAddress();
takeTicketFromAddress();
speak();
open(current);
if (conversations.damaged > 0) notify(t("storageDamaged", { n: conversations.damaged }));
connect();
