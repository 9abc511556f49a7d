/** The server: its model, and answers as they come. Every failure is an ApiError, apart from AbortError. */

import { tabStorage } from "./storage.js";

/** @typedef {"unreachable" | "unauthorized" | "busy" | "context" | "noModel" | "request" | "server" | "interrupted"} ErrorKind */

/**
 * @typedef {object} Model What /v1/models says.
 * @property {string} id
 * @property {string} owned_by
 * @property {number} context_length
 * @property {string} license
 * @property {string} attribution a few lines
 * @property {boolean} instruction_tuned
 * @property {boolean} reads_ahead
 * @property {number} max_parallel
 */

const BUSY = [429, 503];
/** Statuses of a server that may answer later. */

export class ApiError extends Error {
  /**
   * @param {ErrorKind} kind
   * @param {string} [message] what the server said
   * @param {number} [retryAfter] seconds to wait before trying again
   */
  constructor(kind, message = "", retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/** @param {string} key */
export function setApiKey(key) {
  tabStorage.write("key", key);
}

/** Take the API key of an address ending in #key=…, and take it out of the address. Whether there was one. */
export function takeKeyFromAddress() {
  const match = /^#key=(.+)$/.exec(location.hash);
  if (match === null) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    setApiKey(decodeURIComponent(match[1]));
  } catch {
    setApiKey(match[1]); // a percent sign of its own
  }
  return true;
}

/** @returns {Promise<Model>} */
export async function fetchModel() {
  const response = await request("v1/models", {});
  const list = await response.json().catch(() => null);
  const model = list?.data?.[0];
  if (typeof model?.id !== "string") throw new ApiError("server");
  return model;
}

/**
 * The chunks of an answer (chat.completion.chunk), as the server sends them.
 * @param {Record<string, unknown>} body
 * @param {AbortSignal} signal
 */
export async function* streamAnswer(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, include_progress: true } }),
    signal,
  });
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw streamError(chunk.error, chunk.weblab);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw new ApiError("interrupted");
  }
  throw new ApiError("interrupted");
}

/**
 * The data of each event in a stream of them, by the rules of the HTML standard that concern data.
 * @param {ReadableStream<Uint8Array>} body
 */
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  /** @type {string[]} */
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "" && data.length > 0) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

/**
 * The server's response to a request with the key. Throws ApiError where it is none of success.
 * @param {string} path
 * @param {RequestInit} options
 */
export async function request(path, options) {
  const key = tabStorage.read("key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError("unreachable");
  }
  if (!response.ok) throw await statusError(response);
  return response;
}

/** @param {Response} response */
async function statusError(response) {
  const body = await response.json().catch(() => null);
  const message = String(body?.error?.message ?? "");
  if (response.status === 401) return new ApiError("unauthorized", message);
  if (body?.error?.code === "model_not_loaded") return new ApiError("noModel", message);
  if (BUSY.includes(response.status)) return new ApiError("busy", message, seconds(response.headers.get("Retry-After")));
  if (body?.error?.code === "context_length_exceeded") return new ApiError("context", message);
  return new ApiError(response.status < 500 ? "request" : "server", message);
}

/**
 * @param {{ message?: string, code?: string }} error
 * @param {{ status?: number, retry_after?: number }} [said] what the head of a response would have said
 */
function streamError(error, said = {}) {
  const message = String(error.message ?? "");
  if (error.code === "server_ending") return new ApiError("interrupted", message);
  if (BUSY.includes(said.status ?? 0)) return new ApiError("busy", message, said.retry_after ?? 1);
  return new ApiError(error.code === "context_length_exceeded" ? "context" : "server", message);
}

/**
 * Seconds from now of a Retry-After header, which is a number of them or a date.
 * @param {string | null} header
 */
function seconds(header) {
  const wait = Number(header ?? 1);
  return Number.isFinite(wait) ? wait : Math.max(0, Math.ceil((Date.parse(header ?? "") - Date.now()) / 1000)) || 1;
}
