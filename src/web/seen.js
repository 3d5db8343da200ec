/**
 * Knows which parts of a request have been on screen. A part counts when all of it has been visible for a
 * moment, in a window that is visible itself. A folded part counts only once it is opened and read.
 */

const MOMENT = 400;
const STEPS = Array.from({ length: 21 }, (_, step) => step / 20);

/** @type {Set<Seen>} */
const running = new Set();
setInterval(() => running.forEach((seen) => seen.watched.size && seen.count()), 100);

export class Seen {
  /**
   * @param {Element} screen The element that scrolls.
   * @param {() => void} onChange
   */
  constructor(screen, onChange) {
    this.screen = screen;
    this.onChange = onChange;
    /** What has not been on screen: parts, and folds with what opens them.
     * @type {Map<Element, (() => void) | null>} */
    this.unseen = new Map();
    this.total = 0;
    /** Since when a part is on screen, and which of its ends have been.
     * @type {Map<Element, { since: number, top: boolean, bottom: boolean, isOn: boolean }>} */
    this.watched = new Map();
    this.observer = new IntersectionObserver((entries) => this.look(entries), { root: screen, threshold: STEPS });
    running.add(this);
  }

  /** @param {Element} part */
  add(part) {
    this.total += 1;
    this.unseen.set(part, null);
    this.watched.set(part, { since: Infinity, top: false, bottom: false, isOn: false });
    this.observer.observe(part);
  }

  /**
   * @param {Element} button
   * @param {() => void} open
   */
  addFold(button, open) {
    this.total += 1;
    this.unseen.set(button, open);
  }

  /** @param {Element} button */
  unfold(button) {
    if (!this.unseen.delete(button)) return;
    this.onChange();
  }

  get isComplete() {
    return this.total > 0 && this.unseen.size === 0;
  }

  /** @param {IntersectionObserverEntry[]} entries */
  look(entries) {
    for (const { target, isIntersecting, intersectionRatio, boundingClientRect: part, rootBounds: screen } of entries) {
      const state = this.watched.get(target);
      if (!state || !screen) continue;
      // Neither is a part of a frame that has no size.
      const isOn = isIntersecting && screen.height > 0;
      if (isOn && !state.isOn) state.since = performance.now();
      state.isOn = isOn;
      if (!isOn) {
        state.since = Infinity;
        continue;
      }
      const isWhole = intersectionRatio >= 0.95;
      state.top ||= isWhole || (part.top >= screen.top - 2 && part.top <= screen.bottom);
      state.bottom ||= isWhole || (part.bottom <= screen.bottom + 2 && part.bottom >= screen.top);
    }
  }

  count() {
    const now = performance.now();
    // What a dialog covers is not read.
    if (document.visibilityState !== 'visible' || document.querySelector('dialog[open]')) {
      for (const state of this.watched.values()) if (state.isOn) state.since = now;
      return;
    }
    let isChanged = false;
    for (const [part, state] of this.watched) {
      if (!(state.top && state.bottom && now - state.since >= MOMENT)) continue;
      this.watched.delete(part);
      this.observer.unobserve(part);
      this.unseen.delete(part);
      isChanged = true;
    }
    if (isChanged) this.onChange();
  }

  /** Scrolls to the first part that has not been on screen, and opens it if it is folded. */
  next() {
    /** @type {[Element, (() => void) | null] | undefined} */
    let first;
    for (const entry of this.unseen) {
      if (!first || first[0].compareDocumentPosition(entry[0]) & Node.DOCUMENT_POSITION_PRECEDING) first = entry;
    }
    if (!first) return;
    const [part, open] = first;
    part.scrollIntoView({ block: 'start' });
    open?.();
  }

  stop() {
    running.delete(this);
    this.observer.disconnect();
  }
}

/** For what nobody has to look at.
 * @type {Pick<Seen, 'add' | 'addFold' | 'unfold' | 'screen'>} */
export const NO_LOCK = { add: () => {}, addFold: () => {}, unfold: () => {}, screen: document.body };
