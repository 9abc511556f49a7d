/** What the page has when an app shows it: a way in, a connection that says it is open, and a model to be chosen. */

import { ApiError, request, setApiKey } from "./api.js";
import { language } from "./i18n.js";

/**
 * @typedef {object} ModelStatus What v1/app/model says.
 * @property {"none" | "loading" | "loaded"} state
 * @property {string | null} name of the model that is loaded or being loaded
 * @property {number} share of it that is loaded, 0 to 1
 * @property {string | null} failure why the last one could not be loaded, in the server's words
 * @property {{ name: string, size: number }[]} offers the store's models; sizes in bytes
 */

/** Whether the server is an app's: it ends with its last page, and its model is chosen here. */
export const isApp = document.documentElement.hasAttribute("data-app");

const PAUSE = 1000;
/** Milliseconds between a connection's end and the question what has become of the app. */

/** @type {string | null} */
let ticket = null;
/** @type {Promise<void> | null} */
let entering = null;
let isPresent = false;

/** Take the ticket of an address ending in #ticket=…, and take it out of the address. Whether there was one. */
export function takeTicketFromAddress() {
  const match = /^#ticket=([\w-]+)$/.exec(location.hash);
  if (match === null) return false;
  history.replaceState(null, "", location.pathname + location.search);
  ticket = match[1];
  return true;
}

/** Exchange the ticket, if there is one, for the API key. Throws ApiError. */
export function enter() {
  entering ??= exchange().finally(() => (entering = null));
  return entering;
}

async function exchange() {
  if (ticket === null) return;
  try {
    const response = await post("app/key", { ticket });
    setApiKey((await response.json()).key);
  } catch (error) {
    if (/** @type {ApiError} */ (error).kind !== "unauthorized") throw error; // else it was used: this tab may have the key
  }
  ticket = null;
}

/**
 * Hold a connection for as long as this page is open, and call `broken` when it ends before. One tab holds it for all, the
 * next when that is closed: a browser has only a few connections for a server.
 * @param {() => void} broken
 */
export async function stayPresent(broken) {
  if (isPresent) return;
  isPresent = true;
  try {
    await navigator.locks.request("weblab-local.presence", async () => {
      const { body } = await request("v1/app/presence", {});
      const reader = body.getReader();
      while (!(await reader.read()).done);
    });
  } catch {
    // the server is gone, or took another key
  }
  isPresent = false;
  setTimeout(broken, PAUSE);
}

/** @returns {Promise<ModelStatus>} */
export async function fetchStatus() {
  return statusOf(await request("v1/app/model", {}));
}

/**
 * Have the app load a model. Throws ApiError.
 * @param {string} model "demo", a name in the store, or a path
 * @returns {Promise<ModelStatus>} what there is at the beginning of it
 */
export async function chooseModel(model) {
  return statusOf(await post("v1/app/model", { model, language: language() }));
}

/**
 * @param {string} path
 * @param {Record<string, string>} body
 */
function post(path, body) {
  return request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

/** @param {Response} response */
async function statusOf(response) {
  const status = await response.json().catch(() => null);
  if (typeof status?.state !== "string") throw new ApiError("server");
  return status;
}
