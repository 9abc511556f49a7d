/** The switches for language and colours. */

import { language } from "./i18n.js";
import { storage } from "./storage.js";

/** @param {(chosen: import("./i18n.js").Language) => void} onLanguage */
export function prepareSwitches(onLanguage) {
  const theme = document.documentElement.dataset.theme ?? "auto";
  for (const input of radios("language")) {
    input.checked = input.value === language();
    input.addEventListener("change", () => onLanguage(/** @type {"ja" | "en"} */ (input.value)));
  }
  for (const input of radios("theme")) {
    input.checked = input.value === theme;
    input.addEventListener("change", () => {
      if (input.value === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = input.value;
      storage.write("theme", input.value);
    });
  }
}

/**
 * @param {string} name
 * @returns {NodeListOf<HTMLInputElement>}
 */
function radios(name) {
  return document.querySelectorAll(`input[type=radio][name=${name}]`);
}
