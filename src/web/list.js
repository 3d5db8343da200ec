/**
 * The list of requests. Only the rows that are seen exist as elements. Rows neither come nor go while the
 * pointer or the focus is on the list, except below what is seen: news waits until it disturbs nobody, or is
 * asked for.
 */
import { api, isTemporary } from './api.js';
import { fill, h } from './dom.js';
import { key } from './reason.js';
import { age, duration, instant, named, now, t, time } from './text.js';
import { hiddenIn, theirs, visible, visibleText } from './visible.js';

/**
 * @typedef {object} Item As the service lists it.
 * @property {string} requestId
 * @property {string} sessionId
 * @property {string | null} userId
 * @property {string} origin
 * @property {string} actionType
 * @property {string | null} message
 * @property {string} status
 * @property {string} risk
 * @property {string | null} rule
 * @property {string} createdAt
 * @property {string} expiresAt
 * @property {string | null} taskId
 * @property {string | null} decidedBy
 * @property {string | null} decidedVia
 * @property {string | null} decidedAt
 * @property {string | null} settledAt
 * @property {string | null} reason
 * @property {number} approvals
 * @property {number} approvalsNeeded
 * @property {boolean} mayDecide
 * @property {string[]} decisions
 * @property {string} etag
 * @property {boolean} askedAgain
 * @property {string | null} agentWaitsUntil
 *
 * @typedef {Record<string, string>} Query
 *
 * @typedef {object} Options
 * @property {(id: string) => void} open
 * @property {(text: string) => void} announce
 * @property {(id: string) => string} linkTo
 * @property {() => void} changed Rows or their number have changed.
 * @property {() => void} review The person wants to decide the selected requests together.
 */

const STORED = 'aura-hitl-selected';
/** How many were selected when this page was left. They are not selected again: what is decided together has been
 * chosen by somebody who sees it. */
export const lostSelection = Number(stored()) || 0;
const PAGE = 100;
const MARGIN = 8;
/** Asks for the next page so many rows before the end. */
const AHEAD = 60;
const NEWS_INTERVAL = 700;
/** Most rows, and most requests that are in no row, to read for news at once. */
const MOST_READ = 10;
const MOST_OLD = 3;
/** Most requests that can be decided together. */
const MOST_SELECTED = 200;
/** How far back new requests are looked for. */
const NEWS_WINDOW = 120000;

function stored() {
  try { return sessionStorage.getItem(STORED); } catch { return null; }
}

/** @param {Item} item */
export function deadline(item) {
  const ends = instant(item.expiresAt);
  return item.agentWaitsUntil ? Math.min(ends, instant(item.agentWaitsUntil)) : ends;
}

/** @param {Item} item */
export function countdown(item) {
  const left = deadline(item) - now();
  const isUrgent = left < 60000;
  return { isUrgent, text: left > 0 ? duration(left) : t('overdue') };
}

export class RequestList {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Map<string, Item>} */
    this.known = new Map();
    /** New requests that would move what is seen.
     * @type {Map<string, Item>} */
    this.held = new Map();
    /** Requests of this list that are closed by now, or no longer in it.
     * @type {Set<string>} */
    this.closed = new Set();
    /** @type {Map<string, HTMLElement>} */
    this.rows = new Map();
    /** @type {Query} */
    this.query = {};
    /** @type {string | undefined} */
    this.cursor = undefined;
    this.total = 0;
    this.isLoading = false;
    /** @type {import('./api.js').Answer | null} */
    this.problem = null;
    this.active = '';
    this.opened = '';
    this.isUnderPointer = false;
    /** Whether the selected ones are under review: they stay. */
    this.isReviewed = false;
    this.mayBeStale = false;
    this.generation = 0;
    /** @type {Set<string>} */
    this.news = new Set();
    this.newsTimer = 0;
    this.retryTimer = 0;
    this.frame = 0;
    /** Those that are to be decided together.
     * @type {Set<string>} */
    this.selected = new Set();
    /** Where a range begins. */
    this.anchor = '';
    /** What the bar says. */
    this.barKey = '';

    this.all = h('input', { type: 'checkbox', 'aria-label': t('selectAll'), title: t('selectAll') });
    this.all.addEventListener('change', () => { if (this.all.checked) this.selectAll(); else this.selectNone(); });
    this.allLabel = h('label', { class: 'select' }, this.all);
    this.said = h('div', { class: 'said' });
    this.bar = h('div', { class: 'listbar' }, this.allLabel, this.said);
    this.selection = h('div', { class: 'selection', hidden: true, role: 'group', 'aria-label': t('selection') });
    this.inner = h('ul', { class: 'rows', 'aria-label': t('requests') });
    this.empty = h('div', { class: 'empty' });
    this.scroll = h('div', { class: 'scroll' }, this.inner, this.empty);
    this.element = h('div', { class: 'list' }, this.bar, this.scroll, this.selection);
    this.scroll.addEventListener('scroll', () => this.schedule(), { passive: true });
    this.scroll.addEventListener('pointerenter', () => { this.isUnderPointer = true; });
    this.scroll.addEventListener('pointerleave', () => { this.isUnderPointer = false; this.settle(); });
    this.inner.addEventListener('focusin', (event) => {
      const id = this.idOf(event.target);
      if (id) this.active = id;
    });
    this.inner.addEventListener('focusout', () => setTimeout(() => this.settle()));
    this.inner.addEventListener('click', (event) => this.clicked(event));
    new ResizeObserver(() => this.resized()).observe(this.scroll);
    this.rowHeight = 76;
    setInterval(() => this.tick(), 1000);
  }

  /** @param {EventTarget | null} target */
  idOf(target) {
    return target instanceof Element ? target.closest('li')?.dataset.id ?? '' : '';
  }

  /** @param {MouseEvent} event */
  clicked(event) {
    const id = this.idOf(event.target);
    if (id && event.target instanceof HTMLInputElement) {
      if (event.shiftKey) this.selectTo(id, event.target.checked);
      else this.select(id, event.target.checked);
      return;
    }
    const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey;
    if (!id || !isPlain || !(event.target instanceof Element) || !event.target.closest('a')) return;
    event.preventDefault();
    this.options.open(id);
  }

  get isBusy() {
    return this.isUnderPointer || this.inner.contains(document.activeElement);
  }

  /**
   * Shows another list.
   * @param {Query} query
   * @param {Promise<void>} heard Reading waits for this, so that no change is missed: see `start`.
   */
  async load(query, heard) {
    const generation = this.begin();
    this.query = query;
    this.items = [];
    this.known.clear();
    this.held.clear();
    this.closed.clear();
    this.cursor = undefined;
    this.total = 0;
    this.problem = null;
    this.mayBeStale = false;
    this.active = '';
    this.selected.clear();
    this.anchor = '';
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.scroll.scrollTop = 0;
    this.render();
    await heard;
    if (generation !== this.generation) return;
    this.isLoading = false;
    await this.more();
  }

  /** Prepares to read the list anew: answers that are still on their way come to nothing. */
  begin() {
    this.news.clear();
    clearTimeout(this.newsTimer);
    this.newsTimer = 0;
    clearTimeout(this.retryTimer);
    this.isLoading = true;
    return ++this.generation;
  }

  /** Reads the list again, and keeps the place in it. */
  async reload() {
    const generation = this.begin();
    const wanted = Math.min(Math.max(this.items.length, PAGE), PAGE * 3);
    /** @type {Item[]} */
    const items = [];
    /** @type {string | undefined} */
    let cursor;
    do {
      const answer = await api.list({ ...this.query, size: PAGE, cursor });
      if (generation !== this.generation) return;
      if (!answer.ok) {
        this.isLoading = false;
        this.mayBeStale = true;
        if (this.items.length) this.render();
        else await this.more();
        return;
      }
      items.push(...answer.data.content);
      cursor = answer.data.nextCursor;
      this.total = answer.data.totalElements;
    } while (cursor && items.length < wanted);
    this.isLoading = false;
    const place = this.place();
    this.held.clear();
    this.closed.clear();
    this.problem = null;
    this.mayBeStale = false;
    this.items = [];
    this.known.clear();
    for (const item of items) this.put(item, this.items.length);
    this.cursor = cursor;
    if (!cursor && !this.isReviewed) for (const id of this.selected) if (!this.known.has(id)) this.selected.delete(id);
    this.restore(place);
    this.render(true);
  }

  async more() {
    if (this.isLoading) return;
    const generation = this.generation;
    this.isLoading = true;
    this.render();
    const answer = await api.list({ ...this.query, size: PAGE, cursor: this.cursor });
    if (generation !== this.generation) return;
    this.isLoading = false;
    this.problem = answer.ok ? null : answer;
    if (answer.ok) {
      for (const item of answer.data.content) {
        this.held.delete(item.requestId);
        if (!this.known.has(item.requestId)) this.put(item, this.items.length);
      }
      this.cursor = answer.data.nextCursor;
      this.total = answer.data.totalElements;
    } else if (isTemporary(answer)) {
      this.retryTimer = setTimeout(() => this.more(), Math.max(2000, answer.retryAfter * 1000));
    }
    this.render();
    // A page may be empty although there are more.
    if (answer.ok && this.cursor && this.items.length < 20) await this.more();
  }

  /**
   * @param {Item} item
   * @param {number} at
   */
  put(item, at) {
    this.items.splice(at, 0, item);
    this.known.set(item.requestId, item);
  }

  // ── What has changed ──

  /** @param {import('./stream.js').Change} change */
  changed({ requestId, status }) {
    const item = this.known.get(requestId) ?? this.held.get(requestId);
    if (item && status !== 'pending' && item.status !== status) {
      item.status = status;
      item.mayDecide = false;
      if (this.isWaitingList) {
        if (this.held.delete(requestId)) this.render();
        else this.closed.add(requestId);
      }
      this.refresh(requestId);
      this.settle();
      this.render();
    }
    // Who decided, new votes, comments, other contents, and requests that are not in the list yet.
    this.lookAt(requestId);
  }

  /**
   * Notes that this request may have changed. `readNews` looks at it soon.
   * @param {string} id
   */
  lookAt(id) {
    this.news.add(id);
    this.newsTimer ||= setTimeout(() => this.readNews(), NEWS_INTERVAL);
  }

  get isWaitingList() {
    return this.query.status === 'pending';
  }

  async readNews() {
    const generation = this.generation;
    const ids = [...this.news];
    this.news.clear();
    const isUnknown = (/** @type {string} */ id) => !this.known.has(id) && !this.held.has(id);
    const unknown = ids.filter(isUnknown);
    // The rows that are on screen say who decided; a few calls at most.
    const seen = ids.filter((id) => this.rows.has(id) && this.known.has(id)).slice(0, MOST_READ);
    if (unknown.length) {
      const since = new Date(now() - NEWS_WINDOW).toISOString();
      const from = this.query.from && this.query.from > since ? this.query.from : since;
      const answer = await api.list({ ...this.query, sort: '-createdAt', from, size: PAGE });
      if (generation !== this.generation) return;
      if (answer.ok) for (const item of answer.data.content) this.take(item);
      if (!answer.ok || answer.data.nextCursor) this.mayBeStale = true;
    }
    // Older ones may wait again: their agents have asked again, or come back to them.
    const old = this.query.status?.includes('pending') ? unknown.filter(isUnknown).slice(0, MOST_OLD) : [];
    for (const id of [...seen, ...old]) {
      const answer = await api.detail(id);
      if (generation !== this.generation) return;
      if (!answer.ok) continue;
      const { status, mayDecide, createdAt } = answer.data;
      const item = this.known.get(id);
      // It may belong in this list now, or no longer. Only the service knows, so the list is to be read again.
      const isOther = item ? mayDecide !== item.mayDecide : mayDecide && instant(createdAt) < now() - NEWS_WINDOW;
      if (status === 'pending' && isOther) this.mayBeStale = true;
      if (item) this.update({ ...answer.data, context: undefined, planSteps: undefined });
    }
    this.newsTimer = 0;
    if (this.news.size) this.newsTimer = setTimeout(() => this.readNews(), NEWS_INTERVAL);
    this.settle();
    this.render();
  }

  /** @param {Item} item */
  update(item) {
    const before = this.known.get(item.requestId);
    if (!before) return;
    Object.assign(before, item);
    if (this.isWaitingList) {
      if (item.status !== 'pending') this.closed.add(item.requestId);
      else this.closed.delete(item.requestId);
    }
    this.refresh(item.requestId);
    this.options.changed();
  }

  /** @param {Item} item */
  take(item) {
    const id = item.requestId;
    if (this.known.has(id)) return this.update(item);
    const at = this.placeFor(item);
    // It comes with its page.
    if (at === this.items.length && this.cursor) return;
    this.total += 1;
    if (at > this.lastSeen() || !this.items.length) this.put(item, at);
    else this.held.set(id, item);
  }

  /**
   * Where a request belongs in the order of this list.
   * @param {Item} item
   */
  placeFor(item) {
    const sort = this.query.sort || (this.isWaitingList ? 'expiresAt' : '-settledAt');
    /** @param {Item} one */
    const key = (one) => {
      if (sort === 'expiresAt') return [instant(one.expiresAt)];
      if (sort === '-createdAt') return [-instant(one.createdAt)];
      return one.status === 'pending' ? [0, instant(one.expiresAt)] : [1, -instant(one.settledAt ?? one.createdAt)];
    };
    const mine = key(item);
    const at = this.items.findIndex((other) => {
      const theirs_ = key(other);
      const differs = mine.findIndex((part, place) => part !== theirs_[place]);
      return differs >= 0 && (mine[differs] ?? 0) < (theirs_[differs] ?? 0);
    });
    return at < 0 ? this.items.length : at;
  }

  /** Takes in what was held back, and drops what is closed, if that disturbs nobody. */
  settle() {
    if (this.isBusy) return;
    this.takeIn();
  }

  /** Closed requests that may go: neither open nor under review. */
  gone() {
    return [...this.closed].filter((id) => id !== this.opened && !(this.isReviewed && this.selected.has(id)));
  }

  takeIn() {
    if (this.mayBeStale) {
      this.mayBeStale = false;
      this.reload();
      return;
    }
    const gone = this.gone();
    if (!this.held.size && !gone.length) return;
    const place = this.place();
    if (gone.length) {
      const isGone = new Set(gone);
      this.items = this.items.filter((item) => !isGone.has(item.requestId));
      for (const id of gone) {
        this.known.delete(id);
        this.closed.delete(id);
        this.selected.delete(id);
        this.total = Math.max(0, this.total - 1);
      }
    }
    for (const item of this.held.values()) this.put(item, this.placeFor(item));
    this.held.clear();
    this.restore(place);
    this.render();
  }

  /** Shows what was held back because the person asks for it. */
  showNews() {
    this.takeIn();
    this.scroll.scrollTop = 0;
    this.render();
  }

  /** The first row that is seen, and where it is. */
  place() {
    const first = Math.floor(this.scroll.scrollTop / this.rowHeight);
    return { ids: this.items.slice(first, first + 30).map((item) => item.requestId), offset: this.scroll.scrollTop - first * this.rowHeight, isTop: this.scroll.scrollTop < 4 };
  }

  /** @param {{ ids: string[], offset: number, isTop: boolean }} place */
  restore({ ids, offset, isTop }) {
    this.inner.style.height = `${this.items.length * this.rowHeight}px`;
    if (isTop) return;
    const id = ids.find((one) => this.known.has(one));
    const at = this.items.findIndex((item) => item.requestId === id);
    if (at >= 0) this.scroll.scrollTop = at * this.rowHeight + offset;
  }

  // ── What is seen ──

  lastSeen() {
    return Math.floor((this.scroll.scrollTop + this.scroll.clientHeight) / this.rowHeight);
  }

  resized() {
    const height = Number.parseFloat(getComputedStyle(this.scroll).getPropertyValue('--row'));
    if (height && height !== this.rowHeight) this.rowHeight = height;
    this.schedule();
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  /** @param {boolean} [all] Also the rows that exist already. */
  render(all = false) {
    const { items, rowHeight } = this;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / rowHeight) - MARGIN);
    const last = Math.min(items.length, this.lastSeen() + 1 + MARGIN);
    const height = `${items.length * rowHeight}px`;
    if (this.inner.style.height !== height) this.inner.style.height = height;
    const wanted = new Map(items.slice(first, last).map((item, place) => [item.requestId, first + place]));
    // The row with the focus stays, or the focus would be lost.
    const focused = this.idOf(document.activeElement);
    if (focused && !wanted.has(focused) && this.known.has(focused)) {
      wanted.set(focused, items.findIndex((item) => item.requestId === focused));
    }
    for (const [id, row] of this.rows) {
      if (wanted.has(id)) continue;
      row.remove();
      this.rows.delete(id);
    }
    const tabStop = wanted.has(this.active) ? this.active : items[Math.min(first + MARGIN, last - 1)]?.requestId;
    /** @type {Element | null} */
    let next = this.inner.firstElementChild;
    for (const [id, at] of [...wanted].sort(([, one], [, other]) => one - other)) {
      let row = this.rows.get(id);
      const item = this.known.get(id);
      if (!item) continue;
      if (!row) {
        row = h('li', { 'data-id': id }, this.isWaitingList && h('label', { class: 'select' }, h('input', { type: 'checkbox', tabindex: '-1' })), h('a', { href: this.options.linkTo(id) }));
        this.rows.set(id, row);
        this.inner.insertBefore(row, next);
        this.fillRow(row, item);
      } else {
        if (row === next) next = row.nextElementSibling;
        else if (!row.contains(document.activeElement)) this.inner.insertBefore(row, next);
        if (all) this.fillRow(row, item);
      }
      /** @type {HTMLElement} */ (row.querySelector('a')).tabIndex = id === tabStop ? 0 : -1;
      row.style.transform = `translateY(${at * rowHeight}px)`;
      row.setAttribute('aria-posinset', String(at + 1));
      row.setAttribute('aria-setsize', String(this.cursor ? -1 : items.length));
    }
    this.renderBar();
    if (this.cursor && !this.isLoading && !this.problem && this.lastSeen() + AHEAD > items.length) this.more();
    this.options.changed();
  }

  renderBar() {
    const held = this.held.size;
    const gone = this.gone().length;
    const isStale = this.mayBeStale;
    const number = Math.max(this.total, this.items.length) - this.closed.size;
    const count = number > 10000 ? t('moreThan', { n: 10000 }) : t('requestCount', { n: number });
    this.renderSelection();
    const barKey = [held, gone, isStale, count, this.isLoading, this.problem?.status].join();
    if (this.barKey === barKey) return;
    this.barKey = barKey;
    const news = held > 0 ? t('newRequests', { n: held }) : isStale ? t('listChanged') : gone > 0 ? t('closedRequests', { n: gone }) : '';
    fill(this.said,
      h('span', { class: 'count' }, this.problem ? '' : this.isLoading && !this.items.length ? t('loading') : count),
      news && h('button', { type: 'button', class: 'news', onclick: () => this.showNews() }, news));
    const { problem } = this;
    if (problem) {
      fill(this.empty,
        h('p', { class: 'problem', role: 'alert' }, problem.message || t(problem.status ? 'unexpected' : 'unreachable')),
        isTemporary(problem) && h('p', null, t('triesAgain')));
    } else if (!this.items.length && !this.isLoading) {
      const hasFilters = Object.keys(this.query).some((name) => !['status', 'scope', 'sort'].includes(name));
      fill(this.empty, h('p', null, hasFilters ? t('nothingFound') : this.isWaitingList ? t('nothingWaits') : t('nothingHere')));
    } else fill(this.empty, this.isLoading && this.items.length > 0 && h('p', null, t('loading')));
  }

  /** @param {string} id */
  refresh(id) {
    const [row, item] = [this.rows.get(id), this.known.get(id)];
    if (row && item) this.fillRow(row, item);
  }

  /**
   * @param {HTMLElement} row
   * @param {Item} item
   */
  fillRow(row, item) {
    const link = /** @type {HTMLAnchorElement} */ (row.querySelector('a'));
    const isPending = item.status === 'pending';
    const hidden = hiddenIn(`${item.actionType}${item.message ?? ''}${item.userId ?? ''}`);
    row.classList.toggle('closed', this.closed.has(item.requestId));
    row.classList.toggle('opened', item.requestId === this.opened);
    const box = row.querySelector('input');
    if (box) {
      box.checked = this.selected.has(item.requestId);
      box.disabled = !box.checked && !this.isSelectable(item);
      box.setAttribute('aria-label', t('selectOne', { action: visibleText(item.actionType), message: visibleText(item.message ?? '') }));
    }
    row.classList.toggle('selected', this.selected.has(item.requestId));
    link.href = this.options.linkTo(item.requestId);
    if (item.requestId === this.opened) link.setAttribute('aria-current', 'true');
    else link.removeAttribute('aria-current');
    const { isUrgent, text } = countdown(item);
    fill(link,
      h('span', { class: 'first' },
        hasRisk(item) && h('span', { class: `risk ${item.risk}` }, named('risk', item.risk)),
        h('bdi', { class: 'action theirs' }, visible(item.actionType)),
        hidden > 0 && h('span', { class: 'warning', title: t('hiddenCharacters', { n: hidden }) }, '⚠', h('span', { class: 'unseen' }, t('hiddenCharacters', { n: hidden }))),
        h('span', { class: 'end' }, isPending
          ? h('span', { class: isUrgent ? 'countdown urgent' : 'countdown' }, text)
          : h('span', { class: `status ${item.status}` }, named('status', item.status)))),
      h('span', { class: 'message' }, item.message ? theirs(item.message) : theirs(item.requestId)),
      h('span', { class: 'last' },
        item.userId && theirs(item.userId),
        item.approvalsNeeded > 1 && isPending && h('span', null, t('approvalsOf', { n: item.approvals, needed: item.approvalsNeeded })),
        item.rule && isPending && h('span', { class: 'rule' }, theirs(item.rule)),
        item.askedAgain && h('span', null, t('askedAgain')),
        item.decidedBy && !isPending && h('span', null, decider(item)),
        h('span', { class: 'age end' }, isPending ? age(item.createdAt) : time(item.settledAt ?? item.createdAt))));
  }

  /** Once a second. */
  tick() {
    for (const [id, row] of this.rows) {
      const item = this.known.get(id);
      const shown = row.querySelector('.countdown');
      if (!item || !shown) continue;
      const { isUrgent, text } = countdown(item);
      if (shown.textContent !== text) shown.textContent = text;
      shown.classList.toggle('urgent', isUrgent);
    }
  }

  // ── What is to be decided together ──

  /** @param {Item} item */
  isSelectable(item) {
    return item.status === 'pending' && item.mayDecide && !this.closed.has(item.requestId);
  }

  /**
   * @param {string} id
   * @param {boolean} [isSelected] The other way round without it.
   */
  select(id, isSelected = !this.selected.has(id)) {
    this.anchor = id;
    this.selectSome([id], isSelected);
  }

  /**
   * All rows between the one that was chosen last and this one.
   * @param {string} id
   * @param {boolean} isSelected
   */
  selectTo(id, isSelected) {
    const places = [this.anchor, id].map((one) => this.items.findIndex((item) => item.requestId === one)).filter((place) => place >= 0);
    this.selectSome(this.items.slice(Math.min(...places), Math.max(...places) + 1).map((item) => item.requestId), isSelected);
  }

  selectAll() {
    if (!this.isWaitingList) return;
    this.selectSome(this.items.filter((item) => this.isSelectable(item)).map((item) => item.requestId), true);
    this.options.announce(t('selectedCount', { n: this.selected.size }));
  }

  selectNone() {
    this.selectSome([...this.selected], false);
  }

  /**
   * @param {string[]} ids
   * @param {boolean} isSelected
   */
  selectSome(ids, isSelected) {
    if (!this.isWaitingList) return;
    for (const id of ids) {
      const item = this.known.get(id);
      if (!isSelected) this.selected.delete(id);
      else if (item && this.isSelectable(item) && !this.selected.has(id)) {
        if (this.selected.size >= MOST_SELECTED) {
          this.options.announce(t('selectionFull', { n: MOST_SELECTED }));
          break;
        }
        this.selected.add(id);
      }
    }
    for (const id of ids) this.refresh(id);
    this.renderSelection();
  }

  /** The selected ones in the order of the list. */
  selectedItems() {
    return this.items.filter((item) => this.selected.has(item.requestId));
  }

  renderSelection() {
    const isShown = this.isWaitingList && this.items.length > 0;
    this.allLabel.hidden = !isShown;
    const number = this.selected.size;
    const isAll = number > 0 && (number >= MOST_SELECTED || this.items.every((item) => !this.isSelectable(item) || this.selected.has(item.requestId)));
    this.all.checked = isAll;
    this.all.indeterminate = number > 0 && !isAll;
    if (this.selection.dataset.number === String(number)) return;
    this.selection.dataset.number = String(number);
    try { sessionStorage.setItem(STORED, String(number)); } catch { /* Then nobody says that it was lost. */ }
    this.selection.hidden = number === 0;
    if (!this.selection.childElementCount) {
      fill(this.selection, h('span', { class: 'count' }),
        h('button', { type: 'button', class: 'quiet', onclick: () => this.selectNone() }, t('selectNone')),
        h('button', { type: 'button', class: 'primary', onclick: () => this.options.review() }, t('review'), key('b')));
    }
    fill(/** @type {Element} */ (this.selection.querySelector('.count')), t('selectedCount', { n: number }));
  }

  // ── Where the person is ──

  /** @param {string} id */
  markOpened(id) {
    const before = this.opened;
    this.opened = id;
    this.refresh(before);
    this.refresh(id);
    if (id) this.active = id;
    this.settle();
  }

  /**
   * The request that many rows further, among those that are not closed.
   * @param {number} step
   * @param {(item: Item) => boolean} [which]
   * @returns {string}
   */
  beside(step, which = () => true) {
    const from = this.items.findIndex((item) => item.requestId === (this.active || this.opened));
    for (let at = from < 0 && step < 0 ? this.items.length - 1 : from + step; at >= 0 && at < this.items.length; at += step) {
      const item = this.items[at];
      if (item && !this.closed.has(item.requestId) && which(item)) return item.requestId;
    }
    return '';
  }

  /**
   * Makes a row the active one, on screen.
   * @param {string} id
   * @param {boolean} [takesFocus]
   */
  goTo(id, takesFocus = true) {
    const at = this.items.findIndex((item) => item.requestId === id);
    if (at < 0) return;
    this.active = id;
    const top = at * this.rowHeight;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top + this.rowHeight > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = top + this.rowHeight - this.scroll.clientHeight;
    this.render();
    if (takesFocus) this.rows.get(id)?.querySelector('a')?.focus({ preventScroll: true });
  }
}

/**
 * Who decided it: a person, a rule, or a person's approval that was remembered.
 * @param {Item} item
 */
export function decider({ decidedBy, decidedVia }) {
  return [t(decidedVia === 'policy' ? 'byRule' : decidedVia === 'grant' ? 'byGrant' : 'by'), ' ', theirs(decidedBy)];
}

/** @param {Item} item */
export function hasRisk(item) {
  return item.rule !== null || item.risk !== 'medium';
}
