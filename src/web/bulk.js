/**
 * Several requests, decided together. Each is shown in full; approving stays locked until all that would be
 * approved has been on screen, and names the content that was shown. Each has its own result, in place.
 */
import { isTemporary } from './api.js';
import { BULK, decideSeveral, jobOf, jobView, onJobChange, tickJob } from './decisions.js';
import { fill, h } from './dom.js';
import { forget } from './drafts.js';
import { countdown, decider, hasRisk } from './list.js';
import { key, reasonForm } from './reason.js';
import { contentOf, readRequest } from './request.js';
import { Seen } from './seen.js';
import { named, t, time } from './text.js';
import { NAME, hiddenIn, theirs, visibleText, warning } from './visible.js';

/**
 * @typedef {import('./api.js').Answer} Answer
 * @typedef {import('./decisions.js').Result} Result
 * @typedef {import('./list.js').Item} Item
 * @typedef {import('./request.js').Request} Request
 *
 * @typedef {object} Entry One of the requests.
 * @property {string} id
 * @property {Item} item As it was listed.
 * @property {Request | null} request As it is shown.
 * @property {Seen | null} seen
 * @property {boolean} isChosen
 * @property {boolean} hasChanged Its content, since it was first shown.
 * @property {boolean} isRead Whether its reading is over, well or not.
 * @property {{ verb: string, text: string } | null} refusal Why it could not be decided this way.
 * @property {string} done How the person has decided it; empty before.
 * @property {string} gone Why it can no longer be read.
 * @property {AbortController} reading
 * @property {HTMLElement} card
 * @property {HTMLElement} about What stands beside its name.
 * @property {HTMLElement} note
 * @property {HTMLElement} body
 *
 * @typedef {object} Options
 * @property {() => void} close
 * @property {(text: string) => void} announce
 * @property {(item: Item) => void} updated
 * @property {(ids: string[]) => void} decided The person has decided these.
 * @property {(id: string, isSelected: boolean) => void} selected
 * @property {() => void} signIn
 */

const AT_ONCE = 3;
const RETRY = 2000;
/** How long after a change it is read: several come together. */
const NEWS_PAUSE = 200;

export class Bulk {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** @type {Map<string, Entry>} */
    this.entries = new Map();
    /** What is still to be read.
     * @type {Set<string>} */
    this.queue = new Set();
    this.running = 0;
    /** The job of this review: what an earlier one has on its way is not this one's. */
    this.job = '';
    this.reviews = 0;
    this.isRejecting = false;
    /** @type {Answer | null} */
    this.refusal = null;
    this.wasUnlocked = false;
    this.actionsKey = '';

    this.head = h('header', { class: 'detailhead' });
    this.cards = h('div', { class: 'cards' });
    this.screen = h('div', { class: 'screen', tabindex: '0', role: 'region', 'aria-label': t('content') }, this.head, this.cards);
    this.actions = h('div', { class: 'actions', role: 'region', 'aria-label': t('decision') });
    this.element = h('section', { class: 'detail bulk', 'aria-label': t('bulkTitle') }, this.screen, this.actions);
    onJobChange((id) => { if (id === this.job) this.render(); });
    setInterval(() => { if (this.isOpen) this.tick(); }, 1000);
  }

  get isOpen() {
    return this.element.classList.contains('open');
  }

  /** @param {Item[]} items */
  open(items) {
    this.close();
    this.reviews += 1;
    this.job = `${BULK} ${this.reviews}`;
    this.element.classList.add('open');
    for (const item of items) {
      const entry = this.entryOf(item);
      this.entries.set(entry.id, entry);
      this.cards.append(entry.card);
      this.queue.add(entry.id);
    }
    this.screen.scrollTop = 0;
    this.render();
    this.work();
    this.screen.focus({ preventScroll: true });
  }

  close() {
    // What is closed is not sent any more. What is on its way already is announced, and seen in the list.
    jobOf(this.job)?.stop();
    for (const entry of this.entries.values()) {
      entry.reading.abort();
      entry.seen?.stop();
    }
    this.entries = new Map();
    this.queue.clear();
    this.isRejecting = false;
    this.refusal = null;
    this.wasUnlocked = false;
    this.actionsKey = '';
    this.element.classList.remove('open');
    for (const part of [this.head, this.cards, this.actions]) fill(part);
  }

  /**
   * @param {Item} item
   * @returns {Entry}
   */
  entryOf(item) {
    const id = item.requestId;
    const box = h('input', { type: 'checkbox', checked: true, 'aria-label': t('selectOne', { action: visibleText(item.actionType), message: visibleText(item.message ?? '') }) });
    const about = h('span', { class: 'about' });
    const note = h('div', { class: 'note' });
    const body = h('div', { class: 'body' }, h('p', { class: 'loading' }, t('loading')));
    const title = h('h2', { tabindex: '-1' }, theirs(item.actionType, '', NAME), warning(hiddenIn(item.actionType, NAME)));
    const card = h('article', { class: 'card', 'data-id': id, 'aria-label': visibleText(item.actionType) },
      h('header', null, h('label', { class: 'select' }, box), title, about), note, body);
    /** @type {Entry} */
    const entry = {
      id, item, request: null, seen: null, isChosen: true, hasChanged: false, isRead: false, refusal: null, done: '', gone: '',
      reading: new AbortController(), card, about, note, body,
    };
    box.addEventListener('change', () => {
      entry.isChosen = box.checked;
      card.classList.toggle('unchosen', !box.checked);
      this.options.selected(id, box.checked);
      this.render();
    });
    return entry;
  }

  // ── Reading ──

  work() {
    while (this.running < AT_ONCE) {
      const [id] = this.queue;
      const entry = id === undefined ? undefined : this.entries.get(id);
      if (!entry) return;
      this.queue.delete(entry.id);
      this.running += 1;
      this.read(entry).finally(() => {
        this.running -= 1;
        this.work();
      });
    }
  }

  /** @param {Entry} entry */
  async read(entry) {
    const read = await readRequest(entry.id, entry.reading.signal, false);
    if (this.entries.get(entry.id) !== entry) return;
    if ('failed' in read) {
      const { failed } = read;
      // Signed in again, all that is missing is read.
      if (failed.status === 401) return;
      if (isTemporary(failed)) {
        setTimeout(() => this.again(entry), Math.max(RETRY, failed.retryAfter * 1000));
        return;
      }
      entry.isRead = true;
      entry.gone = failed.message || t('unexpected');
      entry.seen?.stop();
      entry.seen = null;
      fill(entry.body);
    } else this.show(entry, read);
    this.render();
  }

  /** @param {Entry} entry */
  again(entry) {
    if (this.entries.get(entry.id) !== entry || entry.done) return;
    this.queue.add(entry.id);
    this.work();
  }

  /**
   * @param {Entry} entry
   * @param {Request} request
   */
  show(entry, request) {
    const before = entry.request?.shown;
    const { shown } = request;
    const isSame = before?.etag === shown.etag;
    entry.isRead = true;
    entry.gone = '';
    if (!isSame || before?.status !== shown.status || before.mayDecide !== shown.mayDecide) entry.refusal = null;
    entry.request = request;
    if (!isSame) {
      entry.hasChanged = before !== undefined;
      if (entry.hasChanged) {
        this.isRejecting = false;
        this.options.announce(`${visibleText(shown.actionType)}: ${t('contentChanged')}`);
      }
      entry.seen?.stop();
      const seen = new Seen(this.screen, () => {
        // What says that approving is locked is true no more.
        if (entry.hasChanged && seen.isComplete) this.renderEntry(entry);
        this.seenMore();
      });
      entry.seen = seen;
      const title = /** @type {HTMLElement} */ (entry.card.querySelector('h2'));
      fill(title, theirs(shown.actionType, '', NAME), warning(hiddenIn(shown.actionType, NAME)));
      seen.add(title);
      fill(entry.body, ...contentOf(request, seen));
    }
    this.options.updated(shown);
  }

  /**
   * Something has happened to a request.
   * @param {string} id
   */
  changed(id) {
    const entry = this.entries.get(id);
    if (entry && !entry.done) setTimeout(() => this.again(entry), NEWS_PAUSE);
  }

  /** Changes may have been missed. */
  readAll() {
    for (const entry of this.entries.values()) this.again(entry);
  }

  signedIn() {
    if (!this.isOpen) return;
    this.refusal = null;
    this.readAll();
    this.render();
  }

  // ── What it says ──

  /**
   * Why a request is left out, or nothing.
   * @param {Entry} entry
   * @param {'approve' | 'reject'} verb
   */
  obstacle({ item, request, gone, done, refusal }, verb) {
    if (done) return done;
    if (gone) return gone;
    const shown = request?.shown ?? item;
    if (shown.status !== 'pending') return named('status', shown.status);
    if (refusal?.verb === verb) return refusal.text;
    if (!shown.mayDecide) return `${t('youCannotDecide')} ${request?.shown.why ?? ''}`;
    if (shown.askedAgain) return t('askedAgainHow');
    if (!shown.decisions.includes(verb)) return t(verb === 'approve' ? 'notApprovable' : 'notRejectable');
    return '';
  }

  /**
   * Those that this would decide.
   * @param {'approve' | 'reject'} verb
   */
  wanted(verb) {
    return [...this.entries.values()].filter((entry) => entry.isChosen && !this.obstacle(entry, verb));
  }

  get isUnlocked() {
    const wanted = this.wanted('approve');
    return wanted.length > 0 && wanted.every(({ isRead, seen }) => isRead && seen?.isComplete);
  }

  seenMore() {
    if (this.isUnlocked !== this.wasUnlocked) this.render();
    else this.renderProgress();
  }

  tick() {
    tickJob(jobOf(this.job), this.actions);
    for (const { request, about } of this.entries.values()) {
      const shown = about.querySelector('.countdown');
      if (!shown || !request) continue;
      const { isUrgent, text } = countdown(request.shown);
      if (shown.textContent !== text) shown.textContent = text;
      shown.classList.toggle('urgent', isUrgent);
    }
  }

  render() {
    if (!this.isOpen) return;
    for (const entry of this.entries.values()) {
      this.renderEntry(entry);
      // What is on its way cannot be taken out.
      /** @type {HTMLInputElement} */ (entry.card.querySelector('.select input')).disabled = jobOf(this.job) !== undefined;
    }
    const out = [...this.entries.values()].filter((entry) => entry.isRead && entry.isChosen && !entry.done && this.obstacle(entry, 'approve'));
    const headKey = JSON.stringify([this.entries.size, out.map((entry) => [entry.id, this.obstacle(entry, 'approve')])]);
    if (this.head.dataset.key !== headKey) {
      this.head.dataset.key = headKey;
      fill(this.head,
        h('button', { type: 'button', class: 'back quiet', onclick: () => this.options.close() }, `‹ ${t('back')}`),
        h('h2', { class: 'bulktitle' }, t('bulkCount', { n: this.entries.size })),
        h('p', { class: 'how' }, t('bulkHow')),
        out.length > 0 && h('div', { class: 'leftout' },
          h('p', null, t('leftOut', { n: out.length })),
          h('ul', null, out.map((entry) => h('li', null, theirs(entry.item.actionType), ' · ', theirs(entry.item.message || entry.id), ' · ', this.obstacle(entry, 'approve'))))));
    }
    this.renderActions();
  }

  /** @param {Entry} entry */
  renderEntry(entry) {
    const { request, note, card } = entry;
    const shown = request?.shown;
    const isOver = entry.done !== '' || entry.gone !== '' || (shown !== undefined && shown.status !== 'pending');
    const noteKey = JSON.stringify([entry.done, entry.gone, entry.refusal, entry.hasChanged, entry.seen?.isComplete, shown?.status, shown?.mayDecide, shown?.decisions, shown?.approvals, shown?.decidedBy]);
    if (card.dataset.key === noteKey) return;
    card.dataset.key = noteKey;
    card.classList.toggle('over', isOver);
    entry.body.hidden = entry.done !== '';
    if (shown && !isOver) {
      fill(entry.about,
        hasRisk(shown) && h('span', { class: `risk ${shown.risk}` }, named('risk', shown.risk)),
        shown.approvalsNeeded > 1 && h('span', null, t('approvalsOf', { n: shown.approvals, needed: shown.approvalsNeeded })),
        h('span', { class: 'countdown' }));
    } else fill(entry.about);
    const obstacle = this.obstacle(entry, 'approve');
    /** @type {HTMLElement} */ (card.querySelector('.select')).hidden = entry.done !== '';
    if (entry.done) fill(note, h('p', { class: 'good' }, `✓ ${entry.done}`), h('p', { class: 'message' }, theirs((shown ?? entry.item).message ?? '')));
    else if (entry.gone) fill(note, h('p', { class: 'problem' }, entry.gone));
    else if (shown && shown.status !== 'pending') {
      fill(note, h('p', null, h('strong', { class: `status ${shown.status}` }, named('status', shown.status)),
        shown.decidedBy && [' · ', decider(shown)], ' · ', time(shown.decidedAt ?? shown.settledAt),
        shown.reason && [' · ', theirs(shown.reason)]));
    } else if (entry.refusal) fill(note, h('p', { class: 'problem' }, entry.refusal.text));
    else if (obstacle) fill(note, h('p', { class: 'cannot' }, obstacle));
    else if (entry.hasChanged) fill(note, h('p', { class: 'changed' }, t(entry.seen?.isComplete ? 'contentHasChanged' : 'contentChanged')));
    else fill(note);
    this.tick();
  }

  renderProgress() {
    const progress = this.actions.querySelector('.progress');
    if (!progress) return;
    const wanted = this.wanted('approve');
    const read = wanted.filter(({ seen }) => seen?.isComplete).length;
    const left = wanted.reduce((sum, { seen }) => sum + (seen?.unseen.size ?? 0), 0);
    const text = !wanted.length ? '' : [t('bulkRead', { n: read, total: wanted.length }), left > 0 ? t('bulkParts', { n: left }) : ''].filter(Boolean).join(' ');
    if (progress.textContent !== text) fill(progress, text);
  }

  renderActions() {
    const job = jobOf(this.job);
    const [approvable, rejectable] = [this.wanted('approve').length, this.wanted('reject').length];
    const isUnlocked = this.isUnlocked;
    if (isUnlocked && !this.wasUnlocked) this.options.announce(t('bulkUnlocked', { n: approvable }));
    this.wasUnlocked = isUnlocked;
    const actionsKey = job ? `job ${job.attempt} ${job.again}`
      : this.refusal ? `refusal ${this.refusal.status}`
        : this.isRejecting && rejectable ? `reject ${rejectable}` : `buttons ${approvable} ${rejectable} ${isUnlocked}`;
    if (actionsKey !== this.actionsKey) {
      this.actionsKey = actionsKey;
      const focused = document.activeElement instanceof HTMLElement && this.actions.contains(document.activeElement)
        ? document.activeElement.dataset.name : undefined;
      fill(this.actions, job ? jobView(job)
        : this.refusal ? this.refusalView(this.refusal)
          : this.isRejecting && rejectable ? this.rejectForm(rejectable) : this.buttons(approvable, rejectable, isUnlocked));
      if (focused !== undefined) {
        const same = this.actions.querySelector(`[data-name="${CSS.escape(focused)}"]:not([disabled])`);
        /** @type {HTMLElement} */ (same ?? this.screen).focus({ preventScroll: true });
      }
    }
    this.renderProgress();
    this.tick();
  }

  /**
   * @param {number} approvable
   * @param {number} rejectable
   * @param {boolean} isUnlocked
   * @returns {import('./dom.js').Child}
   */
  buttons(approvable, rejectable, isUnlocked) {
    const back = h('button', { type: 'button', 'data-name': 'back', onclick: () => this.options.close() }, t('close'), key('Esc'));
    if (!approvable && !rejectable) return [h('p', { class: 'progress' }, t('bulkNothing')), h('div', { class: 'buttons' }, back)];
    return [
      h('div', { class: 'lock' },
        h('p', { class: 'progress', id: 'bulkprogress' }),
        approvable > 0 && !isUnlocked && h('button', { type: 'button', class: 'quiet', 'data-name': 'next', onclick: () => this.next() }, t('nextUnseen'), key('n'))),
      h('div', { class: 'buttons' },
        back,
        rejectable > 0 && h('button', { type: 'button', class: 'reject', 'data-name': 'reject', onclick: () => this.startReject() }, t('rejectSeveral', { n: rejectable }), key('r')),
        approvable > 0 && h('button', {
          type: 'button', class: 'approve', 'data-name': 'approve', disabled: !isUnlocked, 'aria-describedby': 'bulkprogress',
          onclick: (/** @type {MouseEvent} */ event) => { if (event.detail < 2) this.approve(); },
        }, t(isUnlocked ? 'approveSeveral' : 'approveSeveralLocked', { n: approvable }), key('a'))),
    ];
  }

  /** @param {Answer} refusal */
  refusalView(refusal) {
    return h('div', { class: 'refusal', role: 'alert' },
      h('p', null, refusal.message || t('unexpected')),
      h('div', { class: 'buttons' }, refusal.status === 401
        ? h('button', { type: 'button', class: 'primary', 'data-name': 'signin', onclick: () => this.options.signIn() }, t('signIn'))
        : h('button', { type: 'button', 'data-name': 'again', onclick: () => { this.refusal = null; this.readAll(); this.render(); } }, t('lookAgain'))));
  }

  /** @param {number} number */
  rejectForm(number) {
    return reasonForm({
      draftKey: `${BULK} reject`, question: t('rejectSeveralWhy', { n: number }), confirm: t('rejectSeveral', { n: number }),
      send: (reason) => this.send('reject', reason),
      cancel: () => {
        this.isRejecting = false;
        this.renderActions();
        this.screen.focus({ preventScroll: true });
      },
    });
  }

  // ── What can be done ──

  /** The first part that has not been on screen. */
  next() {
    this.wanted('approve').find(({ seen }) => seen && !seen.isComplete)?.seen?.next();
  }

  /**
   * The next request, or the one before.
   * @param {number} step
   */
  move(step) {
    const cards = [...this.entries.values()].map(({ card }) => card);
    const top = this.screen.getBoundingClientRect().top;
    const here = cards.findLastIndex((card) => card.getBoundingClientRect().top <= top + 12);
    const card = cards[Math.max(0, Math.min(cards.length - 1, here + step))];
    card?.scrollIntoView({ block: 'start' });
    card?.querySelector('h2')?.focus({ preventScroll: true });
  }

  startReject() {
    if (jobOf(this.job) || this.refusal || !this.wanted('reject').length) return;
    this.isRejecting = true;
    this.renderActions();
    /** @type {HTMLElement | null} */ (this.actions.querySelector('.pick'))?.focus();
  }

  approve() {
    if (jobOf(this.job) || this.isRejecting || this.refusal) return;
    if (this.isUnlocked) {
      this.send('approve');
      return;
    }
    const left = this.wanted('approve').reduce((sum, { seen }) => sum + (seen?.unseen.size ?? 1), 0);
    if (left) this.options.announce(t('stillLocked', { n: left }));
    this.actions.querySelector('.lock')?.animate([{ opacity: 1 }, { opacity: 0.3 }, { opacity: 1 }], 300);
  }

  /**
   * @param {'approve' | 'reject'} verb
   * @param {string} [reason]
   */
  async send(verb, reason) {
    const entries = this.wanted(verb);
    if (!entries.length) return;
    const wanted = entries.map(({ id, item, request }) => ({
      requestId: id, decision: verb, etag: (request?.shown ?? item).etag, ...(reason !== undefined && { reason }),
    }));
    let [done, failed] = [0, 0];
    const { entries: of } = this;
    const answer = await decideSeveral(this.job, verb, wanted, (results) => {
      /** @type {string[]} */
      const decided = [];
      for (const result of results) {
        const entry = this.entries === of ? this.entries.get(result.requestId) : undefined;
        if (entry ? this.judged(entry, verb, result) : result.status < 300) decided.push(result.requestId);
        else failed += 1;
      }
      done += decided.length;
      if (decided.length) this.options.decided(decided);
      this.render();
    });
    if (done || failed) this.options.announce([done > 0 && t(verb === 'approve' ? 'approvedSeveral' : 'rejectedSeveral', { n: done }), failed > 0 && t('failedSeveral', { n: failed })].filter(Boolean).join(' '));
    if (this.entries !== of) return;
    if (answer?.ok) {
      forget(BULK);
      this.isRejecting = false;
    } else if (answer) {
      this.refusal = answer;
      this.options.announce(answer.message || t('unexpected'));
      if (answer.status === 401) this.options.signIn();
    }
    this.render();
    if (this.isOpen && document.activeElement === document.body) this.screen.focus({ preventScroll: true });
  }

  /**
   * @param {Entry} entry
   * @param {'approve' | 'reject'} verb
   * @param {Result} result
   * @returns {boolean} Whether it is decided, or the vote is recorded.
   */
  judged(entry, verb, { status, data, errorCode, message }) {
    if (status < 300) {
      entry.done = status === 202 ? t('votedMore', { n: Math.max(0, (data?.approvalsNeeded ?? 0) - (data?.approvals ?? 0)) })
        : t(verb === 'approve' ? 'status_approved' : 'status_rejected');
      entry.seen?.stop();
      return true;
    }
    if (errorCode === 'E3006' && data && entry.request) {
      const { decidedBy, decidedAt, reason } = data;
      Object.assign(entry.request.shown, { status: data.status, decidedBy, decidedAt, reason: reason ?? null, mayDecide: false });
    } else if (status === 404) entry.gone = message;
    // What has changed is read again, shown, and locked.
    else if (status !== 412) entry.refusal = { verb, text: message || t('unexpected') };
    // What is known by now. What the service said stays, as long as that is the same.
    if (status !== 404) this.again(entry);
    return false;
  }
}
