/** The dialog of the settings. What is changed there counts at once. */

import { openDialog } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { t } from "./i18n.js";
import { notify } from "./notices.js";
import { DEFAULTS, FIELDS, fit } from "./settings.js";

/** @typedef {import("./settings.js").Field} Field */

export class SettingsDialog {
  /** @param {import("./settings.js").Settings} settings */
  constructor(settings) {
    this.settings = settings;
    for (const name of ["system", "stop"]) {
      const area = /** @type {HTMLTextAreaElement} */ (byId(`set-${name}`));
      area.addEventListener("input", () => settings.set({ [name]: area.value }));
    }
    byId("reset-settings").addEventListener("click", () => {
      const before = settings.values;
      settings.set(DEFAULTS);
      notify(t("resetDone"), { label: t("undo"), run: () => settings.set(before) });
    });
    settings.addEventListener("change", () => this.#fill());
    this.build();
  }

  open() {
    this.#fill();
    openDialog("settings");
  }

  /** Make the numbers' fields, in the language of the page. */
  build() {
    byId("settings-fields").replaceChildren(...FIELDS.map((field) => this.#row(field)));
    this.#fill();
  }

  /** @param {Field} field */
  #row(field) {
    const id = `set-${field.name}`;
    const take = (event) => this.settings.set({ [field.name]: fit(field, event.target.value) });
    const settle = () => {
      number.value = String(this.settings.values[field.name] ?? "");
    };
    const number = /** @type {HTMLInputElement} */ (h("input", {
      type: "number", id, min: field.min, max: field.max, step: field.step === 1 ? 1 : "any",
      inputmode: field.step === 1 ? "numeric" : "decimal", "aria-describedby": `${id}-hint`,
      placeholder: field.optional ? t("random") : null, oninput: take, onchange: settle,
    }));
    const head = h("div", { class: "field-head" }, h("label", { for: id }, t(field.text)));
    if (field.slider) {
      const [min, max] = field.slider;
      const label = t("slider", { name: t(field.text) });
      head.append(h("input", { type: "range", id: `${id}-slider`, min, max, step: field.step, "aria-label": label, oninput: take }));
    }
    head.append(number);
    return h("div", { class: "field" }, head, h("p", { class: "hint", id: `${id}-hint` }, t(`${field.text}Hint`)));
  }

  /** Show the values; what is being typed is left alone. */
  #fill() {
    for (const [name, value] of Object.entries(this.settings.values)) {
      for (const id of [`set-${name}`, `set-${name}-slider`]) {
        const input = /** @type {HTMLInputElement | null} */ (document.getElementById(id));
        if (input && input !== document.activeElement) input.value = String(value ?? "");
      }
    }
  }
}
