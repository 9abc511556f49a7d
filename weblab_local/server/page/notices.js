/** Short notices at the lower edge, with an action at most, and what only a screen reader says. */

import { byId, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";

const PLAIN = 4000;
const WITH_ACTION = 12000;
/** Milliseconds that a notice stays; not while the pointer or the focus is on it. */

/**
 * @param {string} text
 * @param {{ label: string, run: () => void }} [action]
 */
export function notify(text, action) {
  const close = () => {
    clearTimeout(timer);
    if (notice.contains(document.activeElement)) byId("input").focus();
    notice.remove();
  };
  const notice = h("div", { class: "notice" }, h("span", { class: "notice-text" }, text));
  if (action) {
    const run = () => {
      close();
      action.run();
    };
    notice.append(h("button", { type: "button", class: "notice-action", onclick: run }, action.label));
  }
  notice.append(iconButton("close", t("dismiss"), close));
  let timer = 0;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(close, action ? WITH_ACTION : PLAIN);
  };
  for (const event of ["pointerenter", "focusin"]) notice.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) notice.addEventListener(event, wait);
  const notices = byId("notices");
  for (const old of [...notices.children].filter((each) => each.textContent === notice.textContent)) old.remove();
  notices.append(notice);
  raise(notices);
  wait();
}

/**
 * Into the top layer, and into the dialog that is open: what is outside of that cannot be clicked.
 * @param {HTMLElement} notices
 */
function raise(notices) {
  if (notices.matches(":popover-open")) notices.hidePopover();
  (document.querySelector("dialog[open]") ?? document.body).append(notices);
  notices.showPopover();
}

document.addEventListener("close", () => raise(byId("notices")), { capture: true });

/**
 * Have a screen reader say something when it has nothing else to say.
 * @param {string} text
 */
export function announce(text) {
  byId("live").textContent = text;
}
