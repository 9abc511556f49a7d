/** The keyboard: what the keys do, and the list of them. */

import { byId, h } from "./dom.js";
import { t } from "./i18n.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);
const CTRL = isMac ? "⌘" : "Ctrl";
const ALT = isMac ? "⌥" : "Alt";

/** The text's key in i18n.js, and the ways to press it. */
const SHORTCUTS = [
  ["keySend", [["Enter"]]],
  ["keyNewline", [["Shift", "Enter"]]],
  ["keyStop", [["Esc"]]],
  ["keyEditLast", [["↑"]]],
  ["keyNew", [[CTRL, "Shift", "O"]]],
  ["keySwitch", [[ALT, "↑"], [ALT, "↓"]]],
  ["keySettings", [[CTRL, ","]]],
  ["keyHelp", [[CTRL, "/"]]],
];

/** Write the list of them. */
export function showShortcuts() {
  const rows = SHORTCUTS.map(([text, ways]) => {
    const keys = ways.map((way) => h("span", { class: "keys" }, ...way.map((key) => h("kbd", {}, key))));
    return h("div", {}, h("dt", {}, t(text)), h("dd", {}, ...keys));
  });
  byId("shortcut-list").replaceChildren(...rows);
}

/**
 * @param {{ stop: () => void, startNew: () => void, openSettings: () => void, openHelp: () => void,
 *   move: (step: number) => void }} actions
 */
export function listenForShortcuts(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229 || event.defaultPrevented) return;
    if (document.querySelector("dialog[open], .menu:popover-open")) return;
    const run = actionFor(event, actions);
    if (run === null) return;
    event.preventDefault();
    run();
  });
}

/**
 * @param {KeyboardEvent} event
 * @param {Parameters<typeof listenForShortcuts>[0]} actions
 * @returns {(() => void) | null}
 */
function actionFor(event, actions) {
  const { key, altKey, shiftKey } = event;
  const command = isMac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
  if (key === "Escape") return actions.stop;
  if (command && shiftKey && !altKey && key.toLowerCase() === "o") return actions.startNew;
  if (command && !altKey && key === ",") return actions.openSettings;
  if (command && !altKey && (key === "/" || key === "?")) return actions.openHelp;
  if (altKey && !command && !shiftKey && key === "ArrowUp") return () => actions.move(-1);
  if (altKey && !command && !shiftKey && key === "ArrowDown") return () => actions.move(1);
  return null;
}
