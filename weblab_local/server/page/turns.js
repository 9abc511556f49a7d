/** Whose answer streams now: one in a tab, and not so many in all tabs that a browser has no connection left for a page. */

const MOST_STREAMS = 4;
/** A browser keeps six connections to a server, over all tabs. */

export class Turns {
  constructor() {
    /** Settles when the answers of this tab that have come so far are no more on their way. */
    this.last = Promise.resolve();
  }

  /**
   * Do `work` when it is its turn. Rejects with the signal's reason where that is aborted before.
   * @template T
   * @param {AbortSignal} signal
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  run(signal, work) {
    const before = this.last;
    const done = Promise.race([before, aborted(signal)]).then(() => inSlot(signal, work));
    this.last = Promise.allSettled([before, done]).then(() => {});
    return done;
  }
}

/** @param {AbortSignal} signal */
function aborted(signal) {
  return new Promise((_resolve, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/**
 * Do `work` while this tab holds one of the locks that all tabs share. Over plain HTTP from another machine there are
 * none, and each tab is on its own.
 * @template T
 * @param {AbortSignal} signal
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
function inSlot(signal, work) {
  if (!navigator.locks) return work();
  return new Promise((resolve, reject) => {
    const waiting = new AbortController();
    signal.addEventListener("abort", () => waiting.abort(signal.reason), { once: true });
    let granted = false;
    const take = async () => {
      if (granted) return; // two were granted at once
      granted = true;
      waiting.abort();
      await work().then(resolve, reject);
    };
    for (let slot = 0; slot < MOST_STREAMS; slot += 1) {
      navigator.locks.request(`weblab-local.stream.${slot}`, { signal: waiting.signal }, take).catch((error) => {
        if (!granted) reject(error);
      });
    }
  });
}
