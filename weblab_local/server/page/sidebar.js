/** The list of conversations: at the side, or on a narrow screen in a drawer. */

import { byId, h, iconButton } from "./dom.js";
import { language, t } from "./i18n.js";

/** @typedef {import("./conversations.js").Conversation} Conversation */

const DAY = 24 * 60 * 60 * 1000;

/**
 * The heading that a conversation stands under.
 * @param {number} time
 */
function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "today";
  if (time >= midnight - DAY) return "yesterday";
  return time >= midnight - 7 * DAY ? "thisWeek" : "earlier";
}

export class Sidebar {
  /** @param {{ open: (conversation: Conversation) => void, menu: (conversation: Conversation, button: HTMLElement) => void }} actions */
  constructor(actions) {
    this.actions = actions;
    this.element = byId("sidebar");
    this.list = byId("conversations");
    this.opener = byId("open-sidebar");
    this.shown = "";
    this.narrow = matchMedia("(max-width: 820px)");
    this.opener.addEventListener("click", () => this.openDrawer());
    for (const id of ["close-sidebar", "scrim"]) byId(id).addEventListener("click", () => this.closeDrawer());
    this.narrow.addEventListener("change", () => this.closeDrawer());
    this.closeDrawer();
  }

  get isDrawerOpen() {
    return document.body.dataset.drawer === "open";
  }

  openDrawer() {
    document.body.dataset.drawer = "open";
    this.element.inert = false;
    byId("column").inert = true;
    byId("close-sidebar").focus();
  }

  closeDrawer() {
    const wasOpen = this.isDrawerOpen;
    delete document.body.dataset.drawer;
    this.element.inert = this.narrow.matches;
    byId("column").inert = false;
    if (wasOpen && this.narrow.matches) this.opener.focus();
  }

  /**
   * @param {Conversation[]} conversations
   * @param {Conversation} current
   * @param {(conversation: Conversation) => boolean} isRunning
   */
  show(conversations, current, isRunning) {
    const rows = conversations.map((each) => [groupOf(each.updated), each.id, each.title, each === current, isRunning(each)]);
    const shown = JSON.stringify([rows, language()]);
    if (shown === this.shown) return; // nothing is replaced under a pointer that is about to click
    this.shown = shown;
    const focused = document.activeElement instanceof HTMLElement ? document.activeElement.id : "";
    const groups = Map.groupBy(conversations, (each) => groupOf(each.updated));
    this.list.replaceChildren(
      ...[...groups].map(([group, members]) =>
        h("section", { "aria-labelledby": `group-${group}` },
          h("h2", { id: `group-${group}` }, t(group)),
          h("ul", {}, ...members.map((each) => this.#row(each, each === current, isRunning(each)))))),
    );
    if (conversations.length === 0) this.list.append(h("p", { class: "none" }, t("noConversations")));
    if (focused && this.list.querySelector(`#${CSS.escape(focused)}`)) byId(focused).focus();
  }

  /**
   * @param {Conversation} conversation
   * @param {boolean} isCurrent
   * @param {boolean} isRunning
   */
  #row(conversation, isCurrent, isRunning) {
    const title = conversation.title || t("untitled");
    const open = h(
      "button",
      {
        type: "button", class: "open", id: `open-${conversation.id}`, title, "aria-current": isCurrent ? "page" : null,
        onclick: () => this.actions.open(conversation),
      },
      h("span", { class: "row-title" }, title),
      isRunning ? h("span", { class: "pulse", role: "img", "aria-label": t("answering") }) : null,
    );
    const more = iconButton("more", t("actionsFor", { title }), () => this.actions.menu(conversation, more), {
      id: `more-${conversation.id}`, "aria-haspopup": "menu", "aria-expanded": "false",
    });
    return h("li", { class: isCurrent ? "current" : null }, open, more);
  }
}
