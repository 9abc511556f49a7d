/** What went wrong, in the place where the answer would have been, and what to do about it. */

import { isApp } from "./desktop.js";
import { h, icon } from "./dom.js";
import { t } from "./i18n.js";

const TEXTS = {
  unreachable: ["errorUnreachable", "errorUnreachableHint"],
  unauthorized: ["errorUnauthorized", "errorUnauthorizedHint"],
  busy: ["errorBusy", "errorBusyHint"],
  context: ["errorContext", "errorContextHint"],
  noModel: ["errorNoModel", "errorNoModelHint"],
  request: ["errorRequest", "errorRequestHint"],
  server: ["errorServer", "errorServerHint"],
  interrupted: ["errorInterrupted", "errorInterruptedHint"],
};

/** The same of an app, whose user started no server and set no key. */
const APP_TEXTS = {
  ...TEXTS,
  unreachable: ["errorEnded", "errorEndedHint"],
  unauthorized: ["errorOldPage", "errorOldPageHint"],
};

/**
 * What a kind of failure is called, and what to do.
 * @param {import("./api.js").ErrorKind} kind
 */
export function failureTexts(kind) {
  const texts = isApp ? APP_TEXTS : TEXTS;
  const [title, hint] = texts[kind] ?? texts.server;
  return { title: t(title), hint: t(hint) };
}

/**
 * @param {import("./conversations.js").Failure} failure
 * @param {boolean} isLast whether trying again makes sense
 * @param {import("./message.js").Actions} actions
 */
export function failureCard(failure, isLast, actions) {
  const { kind, message } = failure;
  const { title, hint } = failureTexts(kind);
  const buttons = [];
  if (isLast && kind !== "unauthorized") buttons.push(retryButton(failure.retryAt, actions.regenerate));
  if (isLast && kind === "noModel") buttons.push(button(t("choiceTitle"), actions.chooseModel));
  if (isLast && kind === "unauthorized" && !isApp) buttons.push(button(t("enterKey"), actions.enterKey));
  if (kind === "context" || kind === "request") buttons.push(button(t("openSettings"), actions.openSettings));
  return h(
    "div",
    { class: "failure" },
    icon("warning"),
    h("div", {}, h("p", { class: "failure-title" }, title), message ? h("p", { class: "said" }, message) : null, h("p", {}, hint)),
    h("div", { class: "failure-buttons" }, ...buttons),
  );
}

/**
 * @param {string} label
 * @param {() => void} onclick
 */
function button(label, onclick) {
  return h("button", { type: "button", class: "button", onclick }, label);
}

/**
 * A button that counts down to the time that the server named, and keeps the focus meanwhile.
 * @param {number} retryAt
 * @param {() => void} retry
 */
function retryButton(retryAt, retry) {
  const left = () => Math.ceil((retryAt - Date.now()) / 1000);
  const element = button("", () => {
    if (left() <= 0) retry();
  });
  const count = () => {
    const n = left();
    element.textContent = n > 0 ? t("retryIn", { n }) : t("retry");
    element.setAttribute("aria-disabled", String(n > 0));
    if (n > 0) setTimeout(count, Math.min(1000, retryAt - Date.now()));
  };
  count();
  return element;
}
