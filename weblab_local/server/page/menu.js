/** A menu of actions under the button that opens it. */

import { h, icon } from "./dom.js";

/** @typedef {{ label: string, icon: string, run: () => void, danger?: boolean }} Item */

const GAP = 4;

/**
 * Open a menu. Arrows move in it; Escape, Tab and a click elsewhere close it, and the focus goes back to the button.
 * @param {HTMLElement} button
 * @param {Item[]} items
 */
export function openMenu(button, items) {
  const menu = h("div", { class: "menu", role: "menu", popover: "auto", "aria-label": button.getAttribute("aria-label") });
  for (const item of items) {
    const run = () => {
      menu.hidePopover();
      item.run();
    };
    const attributes = { type: "button", role: "menuitem", tabindex: "-1", class: item.danger ? "danger" : null, onclick: run };
    menu.append(h("button", attributes, icon(item.icon), item.label));
  }
  menu.addEventListener("keydown", (event) => move(event, menu));
  menu.addEventListener("toggle", (event) => {
    if (/** @type {ToggleEvent} */ (event).newState !== "closed") return;
    button.setAttribute("aria-expanded", "false");
    menu.remove();
  });
  document.body.append(menu);
  button.setAttribute("aria-expanded", "true");
  menu.showPopover();
  place(menu, button.getBoundingClientRect());
  /** @type {HTMLElement} */ (menu.firstElementChild).focus();
}

/**
 * @param {HTMLElement} menu
 * @param {DOMRect} anchor
 */
function place(menu, anchor) {
  const { width, height } = menu.getBoundingClientRect();
  const below = anchor.bottom + GAP;
  const top = below + height > innerHeight ? anchor.top - GAP - height : below;
  menu.style.top = `${Math.max(GAP, top)}px`;
  menu.style.left = `${Math.max(GAP, Math.min(anchor.right - width, innerWidth - width - GAP))}px`;
}

/**
 * @param {KeyboardEvent} event
 * @param {HTMLElement} menu
 */
function move(event, menu) {
  const items = /** @type {HTMLElement[]} */ ([...menu.children]);
  const at = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
  const targets = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 };
  if (event.key === "Tab") menu.hidePopover();
  if (!(event.key in targets)) return;
  event.preventDefault();
  items[targets[event.key] % items.length].focus();
}
