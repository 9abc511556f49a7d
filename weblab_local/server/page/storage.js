/** The browser's storage under this page's prefix. It may be full, switched off, or hold anything: nothing here throws. */

const PREFIX = "weblab-local.";

/** @param {() => Storage} open */
function area(open) {
  /** @type {Map<string, string>} what could not be stored lives as long as the tab */
  const memory = new Map();
  /** @type {Storage | null} */
  let store = null;
  try {
    store = open();
  } catch {
    // switched off by the browser's settings
  }
  return {
    available: store !== null,

    /** @param {string} name */
    read(name) {
      return memory.get(name) ?? store?.getItem(PREFIX + name) ?? null;
    },

    /**
     * Whether it was stored; if not, it is still remembered.
     * @param {string} name
     * @param {string} value
     */
    write(name, value) {
      try {
        if (store === null) throw new Error("no storage");
        store.setItem(PREFIX + name, value);
        memory.delete(name);
        return true;
      } catch {
        memory.set(name, value);
        return false;
      }
    },

    /** @param {string} name */
    remove(name) {
      memory.delete(name);
      store?.removeItem(PREFIX + name);
    },

    /** @param {string} beginning */
    names(beginning) {
      const stored = store === null ? [] : Object.keys(store);
      const names = stored.filter((key) => key.startsWith(PREFIX + beginning)).map((key) => key.slice(PREFIX.length));
      return [...new Set([...names, ...[...memory.keys()].filter((name) => name.startsWith(beginning))])];
    },
  };
}

/** Kept, and shared by all tabs. */
export const storage = area(() => localStorage);

/** Kept until the tab is closed. */
export const tabStorage = area(() => sessionStorage);

/**
 * Call `listener` with the name of what another tab has changed; null when it cleared everything.
 * @param {(name: string | null) => void} listener
 */
export function onOtherTab(listener) {
  addEventListener("storage", (event) => {
    if (event.key === null) listener(null);
    else if (event.key.startsWith(PREFIX)) listener(event.key.slice(PREFIX.length));
  });
}
