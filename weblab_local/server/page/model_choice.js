/** The dialog in which an app's model is chosen, and how far its loading has come. */

import { chooseModel, fetchStatus } from "./desktop.js";
import { openDialog } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { failureTexts } from "./failure.js";
import { decimal, language, t } from "./i18n.js";
import { announce } from "./notices.js";

const LOOK_AGAIN = 250;
/** Milliseconds between two looks at a model that is being loaded. */

export class ModelChoice {
  /** @param {{ changed: () => void }} actions what follows when a model was loaded, or not, or the app is gone */
  constructor(actions) {
    this.actions = actions;
    /** @type {import("./desktop.js").ModelStatus | null} */
    this.status = null;
    this.isWatching = false;
    this.offered = "";
    byId("choice-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const name = /** @type {HTMLInputElement} */ (byId("choice-input")).value.trim();
      if (name !== "") this.#choose(name);
    });
  }

  open() {
    this.show();
    openDialog("choice");
    byId("choice-offers").querySelector("button").focus();
  }

  /** Ask the app which model there is; whether one is loaded. Throws ApiError. */
  async look() {
    this.status = await fetchStatus();
    this.show();
    if (this.status.state === "loading") this.#watch();
    return this.status.state === "loaded";
  }

  /** Show everything as it is now, in the language of the page. */
  show() {
    const { state, name, share, failure, offers } = this.status ?? { state: "none", name: null, share: 0, failure: null, offers: [] };
    const isLoading = state === "loading";
    byId("choice-refused").hidden = failure === null || isLoading;
    byId("choice-refused").replaceChildren(h("strong", {}, t("choiceFailed")), h("span", { class: "said" }, failure ?? ""));
    byId("choice-loading").hidden = !isLoading;
    byId("choice-loading-text").textContent = isLoading ? t("choiceLoading", { name }) : "";
    /** @type {HTMLProgressElement} */ (byId("choice-progress")).value = share;
    /** @type {HTMLFieldSetElement} */ (byId("choice-fields")).disabled = isLoading;
    this.#showOffers(offers);
  }

  /** @param {import("./desktop.js").ModelStatus["offers"]} offers */
  #showOffers(offers) {
    const offered = JSON.stringify([offers, language()]);
    if (offered === this.offered) return; // nothing is replaced under a pointer that is about to click
    this.offered = offered;
    byId("choice-offers").replaceChildren(
      ...offers.map(({ name, size }) => this.#offer(name, name, `${decimal(size / 1e9, 2)} GB`)),
      this.#offer("demo", t("choiceDemo"), t("choiceDemoHint")),
    );
  }

  /**
   * @param {string} name
   * @param {string} title
   * @param {string} hint
   */
  #offer(name, title, hint) {
    const onclick = () => this.#choose(name);
    return h("li", {}, h("button", { type: "button", onclick }, h("strong", {}, title), h("span", { class: "hint" }, hint)));
  }

  /** @param {string} name */
  async #choose(name) {
    try {
      this.status = await chooseModel(name);
    } catch (error) {
      const { kind, message } = /** @type {import("./api.js").ApiError} */ (error);
      this.status = { ...this.status, failure: message || failureTexts(kind).title };
      this.show();
      return;
    }
    this.show();
    this.#watch();
  }

  /** Look until nothing is being loaded any more. */
  async #watch() {
    if (this.isWatching) return;
    this.isWatching = true;
    try {
      while (this.status.state === "loading") {
        await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN));
        this.status = await fetchStatus();
        this.show();
      }
      if (this.status.failure === null) {
        /** @type {HTMLDialogElement} */ (byId("choice")).close();
        announce(t("choiceLoaded", { name: this.status.name }));
      }
    } catch {
      // whoever is told below finds that out
    }
    this.isWatching = false;
    this.actions.changed();
  }
}
