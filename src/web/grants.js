/**
 * Approvals that are remembered: what is approved without asking, until when, and a button that ends it.
 */
import { api, isTemporary } from './api.js';
import { fill, h } from './dom.js';
import { current } from './session.js';
import { duration, instant, now, t, time } from './text.js';
import { hiddenIn, theirs, visibleText, warning } from './visible.js';

/**
 * @typedef {object} Grant As the service lists it.
 * @property {string} grantId
 * @property {string} requestId
 * @property {string} grantedBy
 * @property {string} userId
 * @property {string} scope
 * @property {string} [sessionId]
 * @property {string} actionType
 * @property {string} arguments
 * @property {string} [rule]
 * @property {string} createdAt
 * @property {string} expiresAt
 */

const INTERVAL = 10000;

export class Grants {
  /** @param {{ open: (id: string) => void, linkTo: (id: string) => string, announce: (text: string) => void, signIn: () => void }} options */
  constructor(options) {
    this.options = options;
    this.isShown = false;
    this.generation = 0;
    /** By id. What a grant says never changes, so its element stays.
     * @type {Map<string, HTMLElement>} */
    this.shown = new Map();
    this.count = h('span', { class: 'count' });
    this.rows = h('ul', { class: 'grants' });
    this.end = h('div', { class: 'empty' });
    this.scroll = h('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': t('remembered') }, this.rows, this.end);
    this.element = h('section', { class: 'taskview', 'aria-labelledby': 'grantstitle' }, h('h2', { class: 'unseen', id: 'grantstitle' }, t('remembered')), h('div', { class: 'listbar' }, this.count), this.scroll);
    setInterval(() => {
      if (this.isShown && document.visibilityState === 'visible' && current()) this.read();
    }, INTERVAL);
  }

  show() {
    if (!this.isShown) this.clear();
    this.isShown = true;
    this.read();
  }

  hide() {
    this.isShown = false;
  }

  /** Shows nothing of whoever was signed in. */
  clear() {
    this.shown.clear();
    fill(this.rows);
    fill(this.count);
    fill(this.end, h('p', null, t('loading')));
  }

  async read() {
    const generation = ++this.generation;
    const answer = await api.grants();
    if (generation !== this.generation) return;
    if (answer.ok) this.render(answer.data.grants);
    else {
      fill(this.end,
        h('p', { class: 'problem', role: 'alert' }, answer.message || t(answer.status ? 'unexpected' : 'unreachable')),
        isTemporary(answer) && h('p', null, t('triesAgain')));
    }
  }

  /** @param {Grant[]} grants */
  render(grants) {
    const ids = new Set(grants.map(({ grantId }) => grantId));
    for (const [id, element] of this.shown) {
      if (ids.has(id)) continue;
      const hadFocus = element.contains(document.activeElement);
      element.remove();
      this.shown.delete(id);
      if (hadFocus) this.scroll.focus({ preventScroll: true });
    }
    /** @type {Element | null} */
    let next = this.rows.firstElementChild;
    for (const grant of grants) {
      let element = this.shown.get(grant.grantId);
      if (!element) {
        element = this.row(grant);
        this.shown.set(grant.grantId, element);
      }
      if (element === next) next = element.nextElementSibling;
      else this.rows.insertBefore(element, next);
      fill(/** @type {Element} */ (element.querySelector('.countdown')), t('rememberedFor', { time: duration(instant(grant.expiresAt) - now()) }));
    }
    fill(this.count, t('rememberedCount', { n: grants.length }));
    fill(this.end, !grants.length && h('p', null, t('nothingRemembered')));
  }

  /** @param {Grant} grant */
  row(grant) {
    const facts = /** @type {[string, any][]} */ ([
      [t('requester'), theirs(grant.userId)],
      [t('session'), grant.sessionId ? theirs(grant.sessionId, 'id') : t('anySession')],
      [t('content'), t(grant.arguments === 'exact' ? 'rememberExact' : 'rememberAny')],
      [t('rememberedSince'), time(grant.createdAt)],
      [t('rememberedUntil'), time(grant.expiresAt)],
      [t('rememberedBy'), theirs(grant.grantedBy)],
      grant.rule && [t('rule'), theirs(grant.rule)],
      [t('request'), h('a', {
        href: this.options.linkTo(grant.requestId),
        onclick: (/** @type {MouseEvent} */ event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return;
          event.preventDefault();
          this.options.open(grant.requestId);
        },
      }, theirs(grant.requestId, 'id'))],
      [t('grant'), theirs(grant.grantId, 'id')],
    ].filter(Boolean));
    const ending = h('div', { class: 'ending' });
    const element = h('li', { class: 'grant', 'data-id': grant.grantId },
      h('div', { class: 'first' }, theirs(grant.actionType, 'action'), warning(hiddenIn(grant.actionType)), h('span', { class: 'countdown end' })),
      h('dl', { class: 'facts' }, facts.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value)))),
      ending);
    this.offer(grant, ending);
    return element;
  }

  /**
   * The button that ends a grant. It asks once more.
   * @param {Grant} grant
   * @param {HTMLElement} ending
   */
  offer(grant, ending) {
    const problem = h('p', { class: 'problem', role: 'alert' });
    const end = h('button', { type: 'button', class: 'reject', 'aria-label': `${t('endGrant')}: ${visibleText(grant.actionType)}` }, t('endGrant'));
    const ask = h('div', { class: 'buttons' }, end);
    fill(ending, problem, ask);
    const keep = () => {
      this.offer(grant, ending);
      ending.querySelector('button')?.focus();
    };
    end.addEventListener('click', () => {
      const confirm = h('button', { type: 'button', class: 'reject', 'data-name': 'confirm' }, t('endGrantNow'));
      const keeps = h('button', { type: 'button', 'data-name': 'keep', onclick: keep }, t('keepGrant'));
      confirm.addEventListener('click', async () => {
        confirm.disabled = keeps.disabled = true;
        const answer = await api.endGrant(grant.grantId);
        if (answer.ok || answer.status === 404) {
          this.options.announce(t('grantEnded', { action: visibleText(grant.actionType) }));
          await this.read();
          return;
        }
        confirm.disabled = keeps.disabled = false;
        confirm.focus();
        fill(problem, answer.message || t(answer.status ? 'unexpected' : 'unreachable'));
        if (answer.status === 401) this.options.signIn();
      });
      ask.addEventListener('keydown', (event) => { if (event.key === 'Escape') keep(); });
      fill(problem);
      fill(ask, h('p', { class: 'question' }, t('endGrantWhat')), keeps, confirm);
      keeps.focus();
    });
  }
}
