/** How answers are generated: the values, their ranges, and what of them goes into a request. */

import { onOtherTab, storage } from "./storage.js";

/**
 * @typedef {object} Field A number among the settings.
 * @property {string} name as the API has it
 * @property {string} text the key of its name in i18n.js; the explanation's is this + "Hint"
 * @property {number} min
 * @property {number} max
 * @property {number} step
 * @property {[number, number]} [slider] the slider's ends, where it has one
 * @property {boolean} [optional] whether it may be empty
 */

/** @type {Field[]} */
export const FIELDS = [
  { name: "temperature", text: "temperature", min: 0, max: 100, step: 0.05, slider: [0, 2] },
  { name: "top_p", text: "topP", min: 0, max: 1, step: 0.01, slider: [0, 1] },
  { name: "top_k", text: "topK", min: 0, max: 2 ** 31 - 1, step: 1, slider: [0, 200] },
  { name: "min_p", text: "minP", min: 0, max: 1, step: 0.01, slider: [0, 1] },
  { name: "repeat_penalty", text: "repeatPenalty", min: 0.01, max: 100, step: 0.01, slider: [1, 2] },
  { name: "max_tokens", text: "maxTokens", min: 1, max: 2 ** 31 - 1, step: 1 },
  { name: "seed", text: "seed", min: 0, max: 2 ** 32 - 2, step: 1, optional: true },
];

/** The defaults of weblab_local.SamplingParams. */
export const DEFAULTS = Object.freeze({
  temperature: 0.7, top_p: 0.95, top_k: 50, min_p: 0, repeat_penalty: 1, max_tokens: 512,
  seed: /** @type {number | null} */ (null), stop: "", system: "",
});

/** @typedef {typeof DEFAULTS} Values */

/**
 * The number that a field takes for what was entered: in its range, whole where it has to be, null for an empty one.
 * @param {Field} field
 * @param {unknown} entered
 */
export function fit(field, entered) {
  const number = typeof entered === "string" && entered.trim() === "" ? NaN : Number(entered ?? NaN);
  if (Number.isNaN(number)) return field.optional ? null : DEFAULTS[field.name];
  const whole = field.step === 1 ? Math.round(number) : number;
  return Math.min(field.max, Math.max(field.min, whole));
}

/** The settings of this browser. The event "change" says that they are others now. */
export class Settings extends EventTarget {
  constructor() {
    super();
    this.values = stored();
    onOtherTab((name) => {
      if (name !== null && name !== "settings") return;
      this.values = stored();
      this.dispatchEvent(new Event("change"));
    });
  }

  /** @param {Partial<Values>} values */
  set(values) {
    this.values = { ...this.values, ...values };
    storage.write("settings", JSON.stringify(this.values));
    this.dispatchEvent(new Event("change"));
  }

  /** What of the settings a request carries, apart from the system message. */
  request() {
    const { stop, system: _system, seed, ...numbers } = this.values;
    const stops = stop.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
    return { ...numbers, ...(seed === null ? {} : { seed }), ...(stops.length > 0 ? { stop: stops } : {}) };
  }
}

/** @returns {Values} */
function stored() {
  let found;
  try {
    found = JSON.parse(storage.read("settings") ?? "{}");
  } catch {
    found = {};
  }
  const values = { ...DEFAULTS };
  for (const field of FIELDS) {
    if (found?.[field.name] !== undefined) values[field.name] = fit(field, found[field.name]);
  }
  for (const name of ["stop", "system"]) {
    if (typeof found?.[name] === "string") values[name] = found[name];
  }
  return values;
}
