/**
 * Knows which parts of a request have been on screen. A part counts when it has been visible from its top to
 * its end, without a gap, each for a moment, in a window that is visible itself. A folded part counts only once
 * it is opened and read.
 */

const MOMENT = 400;
/** How much of a part may be hidden by rounding, in pixels. */
const ROUNDING = 2;
/** How much of what was read stays on screen when it scrolls on, in pixels. */
const OVERLAP = 16;

/** @type {Set<Seen>} */
const running = new Set();
setInterval(() => running.forEach((seen) => seen.watched.size && seen.count()), 100);

export class Seen {
  /**
   * @param {Element} screen The element that scrolls.
   * @param {() => void} onChange
   * @param {Element} [around] What may cut off parts of that element.
   */
  constructor(screen, onChange, around = screen) {
    this.screen = screen;
    this.around = around;
    this.onChange = onChange;
    /** What has not been on screen: parts, and folds with what opens them.
     * @type {Map<Element, (() => void) | null>} */
    this.unseen = new Map();
    this.total = 0;
    /** How far a part has been read from its top, and what of it has stayed on screen since when: shares of its
     * height, so that another width of the window changes little.
     * @type {Map<Element, { read: number, from: number, to: number, since: number, isOn: boolean }>} */
    this.watched = new Map();
    this.observer = new IntersectionObserver((entries) => this.look(entries), { root: screen, threshold: 0 });
    running.add(this);
  }

  /** @param {Element} part */
  add(part) {
    this.total += 1;
    this.unseen.set(part, null);
    this.watched.set(part, { read: 0, from: 0, to: 1, since: 0, isOn: false });
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
    for (const { target, isIntersecting, rootBounds: screen } of entries) {
      const state = this.watched.get(target);
      if (!state || !screen) continue;
      // Neither is a part of a frame that has no size.
      const isOn = isIntersecting && screen.height > 0;
      if (isOn !== state.isOn) state.since = 0;
      state.isOn = isOn;
    }
  }

  count() {
    // What a dialog covers is not read.
    const isHidden = document.visibilityState !== 'visible' || document.querySelector('dialog[open]') !== null;
    const [inner, outer] = [this.screen.getBoundingClientRect(), this.around.getBoundingClientRect()];
    const screen = { top: Math.max(inner.top, outer.top, 0), bottom: Math.min(inner.bottom, outer.bottom, innerHeight) };
    let isChanged = false;
    for (const [part, state] of this.watched) {
      if (isHidden) state.since = 0;
      else if (state.isOn && this.isRead(part.getBoundingClientRect(), screen, state)) {
        this.watched.delete(part);
        this.observer.unobserve(part);
        this.unseen.delete(part);
        isChanged = true;
      }
    }
    if (isChanged) this.onChange();
  }

  /**
   * Whether all of a part has been read, now that this much of it is on screen.
   * @param {DOMRect} part
   * @param {{ top: number, bottom: number }} screen
   * @param {{ read: number, from: number, to: number, since: number }} state
   */
  isRead(part, screen, state) {
    const now = performance.now();
    const share = (/** @type {number} */ y) => part.height > 0 ? Math.min(1, Math.max(0, (y - part.top) / part.height)) : 1;
    const from = part.height > 0 ? share(screen.top) : 0;
    const to = screen.bottom > screen.top ? share(screen.bottom) : 0;
    if (!state.since) Object.assign(state, { from, to, since: now });
    state.from = Math.max(state.from, from);
    state.to = Math.min(state.to, to);
    if (now - state.since < MOMENT) return false;
    const rounding = ROUNDING / Math.max(part.height, 1);
    // What follows a gap is not read yet.
    if (state.from <= state.read + rounding) state.read = Math.max(state.read, state.to);
    Object.assign(state, { from, to, since: now });
    return state.read >= 1 - rounding;
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
    const read = (this.watched.get(part)?.read ?? 0) * part.getBoundingClientRect().height;
    if (read > OVERLAP) this.screen.scrollBy({ top: read - OVERLAP, behavior: 'instant' });
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
