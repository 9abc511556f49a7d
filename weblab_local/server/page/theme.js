/* Runs before the first paint, so that a dark room stays dark: the language and the colours of the last visit. */
"use strict";
(() => {
  const read = (name) => {
    try {
      return localStorage.getItem(`weblab-local.${name}`);
    } catch {
      return null; // storage is switched off
    }
  };
  const root = document.documentElement;
  const theme = read("theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  const language = read("language") ?? navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag === "ja" || tag === "en");
  root.lang = language === "ja" ? "ja" : "en";
})();
