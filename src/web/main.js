/**
 * The inbox page: puts the views together. The address says what is shown, so that a link shows the same.
 */
import { api } from './api.js';
import { Bulk } from './bulk.js';
import { Detail } from './detail.js';
import { fill, h, isTyping } from './dom.js';
import { belongTo } from './drafts.js';
import { Grants } from './grants.js';
import { RequestList, lostSelection } from './list.js';
import { current, onSessionChange, signIn, signOut } from './session.js';
import { start, stop } from './stream.js';
import { Tasks } from './tasks.js';
import { choose, language, named, t } from './text.js';
import { showCount } from './title.js';
import { theirs } from './visible.js';

const TABS = /** @type {const} */ (['waiting', 'mine', 'history', 'tasks', 'remembered']);
const TITLES = /** @type {const} */ ({ waiting: 'tabWaiting', mine: 'tabMine', history: 'tabHistory', tasks: 'tabTasks', remembered: 'tabRemembered' });
const CLOSED = 'approved,rejected,answered,expired,cancelled';
const STATUSES = ['pending', 'approved', 'rejected', 'answered', 'expired', 'cancelled'];
const RISKS = ['low', 'medium', 'high', 'critical'];
/** The filters of a list, named as in the API. */
const FILTERS = /** @type {const} */ (['q', 'actionType', 'userId', 'sessionId', 'taskId', 'decidedBy', 'risk', 'rule', 'from', 'to', 'status', 'sort', 'scope']);
/** Filters without an input of their own: links bring them, and they can be removed. */
const CHIPS = /** @type {const} */ (['sessionId', 'taskId', 'decidedBy', 'rule']);
/** @type {Record<string, string>} */
const NO_FILTERS = Object.fromEntries(FILTERS.map((name) => [name, '']));
const TYPING_PAUSE = 250;

/** @typedef {(typeof TABS)[number]} Tab */

// ── The address ──

/** @returns {URLSearchParams} */
const address = () => new URLSearchParams(location.search);

/** @returns {Tab} */
function tabOf() {
  const tab = address().get('tab');
  return TABS.find((known) => known === tab) ?? 'waiting';
}

/**
 * Whether a tab lists requests.
 * @param {Tab} tab
 */
const hasList = (tab) => tab !== 'tasks' && tab !== 'remembered';

/**
 * The address with these parameters; an empty one is left out.
 * @param {Record<string, string>} changes
 * @param {URLSearchParams} [from]
 */
function addressWith(changes, from = address()) {
  for (const [name, value] of Object.entries(changes)) {
    if (value) from.set(name, value);
    else from.delete(name);
  }
  return from.size ? `?${from}` : location.pathname;
}

/**
 * @param {Record<string, string>} changes
 * @param {boolean} [replaces] Without a step to go back to.
 */
function go(changes, replaces = false) {
  const next = addressWith(changes);
  if (next === (location.search || location.pathname)) return;
  if (replaces) history.replaceState(null, '', next);
  else history.pushState(null, '', next);
  follow();
}

/** @returns {import('./list.js').Query} */
function queryOf() {
  const [tab, given] = [tabOf(), address()];
  /** @type {Record<string, string>} */
  const query = {};
  for (const name of FILTERS) {
    const value = given.get(name);
    if (value) query[name] = value;
  }
  if (query.scope !== 'tenant' || !current()?.isAdmin) delete query.scope;
  if (tab === 'waiting') query.status = 'pending';
  if (tab === 'mine') {
    query.scope = 'mine';
    query.status ||= `pending,${CLOSED}`;
  }
  if (tab === 'history' && (!query.status || query.status === 'pending')) query.status = CLOSED;
  if (query.sort === 'expiresAt' && query.status !== 'pending') delete query.sort;
  if (tab === 'waiting' && query.sort !== '-createdAt') delete query.sort;
  return query;
}

// ── The parts ──

const live = h('div', { class: 'unseen', role: 'status', 'aria-live': 'polite' });
const toast = h('div', { class: 'toast', 'aria-hidden': 'true' });
let toastTimer = 0;

/** @param {string} text */
function announce(text) {
  // The same words again are a change only if they are set anew.
  fill(live);
  setTimeout(() => fill(live, text), 50);
  fill(toast, text);
  toast.classList.add('shown');
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove('shown'), 5000);
}

/** @param {string} id */
const linkTo = (id) => addressWith({ request: id });

const list = new RequestList({ open: (id) => open(id), announce, linkTo, changed: () => showFound(), review: () => review() });
const detail = new Detail({
  close: () => closeDetail(),
  announce,
  updated: (item) => list.update(item),
  decided: (id) => next(id),
  remembered: () => offerGrants(),
  showRemembered: () => go({ ...NO_FILTERS, tab: 'remembered', request: '' }),
  signIn: () => askToSignIn(),
});
const bulk = new Bulk({
  close: () => closeReview(),
  announce,
  updated: (item) => list.update(item),
  decided: (ids) => {
    list.selectSome(ids, false);
    for (const id of ids) list.lookAt(id);
  },
  selected: (id, isSelected) => list.select(id, isSelected),
  signIn: () => askToSignIn(),
});
const tasks = new Tasks({
  open: (id) => go({ tab: '', request: id, status: '' }),
  linkTo: (id) => addressWith({ request: id }, new URLSearchParams()),
  statusChosen: (status) => go({ status }),
});
const grants = new Grants({
  open: (id) => go({ tab: '', request: id }),
  linkTo: (id) => addressWith({ request: id }, new URLSearchParams()),
  announce,
  signIn: () => askToSignIn(),
});

/** @type {Record<string, HTMLElement>} */
const tabs = Object.fromEntries(TABS.map((tab) => [tab, h('a', { href: '?', 'data-tab': tab }, h('span', null, t(TITLES[tab])), h('span', { class: 'badge' }))]));
const connection = h('span', { class: 'connection' });
const account = h('span', { class: 'account' });
const nav = h('nav', { 'aria-label': t('views') }, TABS.map((tab) => tabs[tab]));
const header = h('header', { class: 'top' },
  h('h1', null, t('title')), nav,
  h('div', { class: 'tools' }, connection, account,
    h('button', { type: 'button', class: 'quiet', lang: language === 'ko' ? 'en' : 'ko', onclick: () => { choose(language === 'ko' ? 'en' : 'ko'); location.reload(); } }, language === 'ko' ? 'English' : '한국어'),
    h('button', { type: 'button', class: 'quiet help', 'aria-label': t('help'), title: t('help'), onclick: () => showHelp() }, '?')));

nav.addEventListener('click', (event) => {
  const link = event.target instanceof Element ? event.target.closest('a') : null;
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  const tab = link.dataset.tab ?? '';
  history.pushState(null, '', tab === 'waiting' ? location.pathname : `?tab=${tab}`);
  follow();
});

// ── Filters ──

const search = h('input', { type: 'search', class: 'search', 'aria-label': t('search'), placeholder: t('search'), maxlength: '200' });
const knownActions = h('datalist', { id: 'actions' });
/** @type {Record<string, HTMLInputElement | HTMLSelectElement>} */
const inputs = {
  actionType: h('input', { type: 'text', list: 'actions', maxlength: '128' }),
  userId: h('input', { type: 'text', maxlength: '256' }),
  status: h('select', null),
  risk: h('select', null, h('option', { value: '' }, t('any')), RISKS.map((risk) => h('option', { value: risk }, named('risk', risk)))),
  from: h('input', { type: 'date' }),
  to: h('input', { type: 'date' }),
  sort: h('select', null),
  scope: h('select', null, h('option', { value: '' }, t('scopeDecidable')), h('option', { value: 'tenant' }, t('scopeTenant'))),
};
const LABELS = /** @type {const} */ ({ actionType: 'action', userId: 'requester', status: 'status', risk: 'risk', from: 'from', to: 'to', sort: 'sort', scope: 'scope' });
/** @type {Record<string, HTMLElement>} */
const labelled = Object.fromEntries(Object.entries(inputs).map(([name, input]) => [name, h('label', null, h('span', null, t(LABELS[/** @type {keyof typeof LABELS} */ (name)])), input)]));
const panel = h('div', { class: 'filterpanel', id: 'filterpanel', hidden: true }, Object.values(labelled), knownActions,
  h('button', { type: 'button', onclick: () => go(NO_FILTERS) }, t('clearFilters')));
const more = h('button', { type: 'button', class: 'quiet', 'aria-expanded': 'false', 'aria-controls': 'filterpanel', onclick: () => showPanel(panel.hidden) }, t('filters'));
const chips = h('div', { class: 'chips' });
const filters = h('form', { class: 'filters', role: 'search', onsubmit: (/** @type {Event} */ event) => event.preventDefault() },
  h('div', { class: 'searchline' }, search, more), panel, chips);

/** @param {boolean} isShown */
function showPanel(isShown) {
  panel.hidden = !isShown;
  more.setAttribute('aria-expanded', String(isShown));
}

let typing = 0;
for (const [name, input] of [['q', search], ...Object.entries(inputs)]) {
  const changed = () => {
    clearTimeout(typing);
    const field = /** @type {HTMLInputElement} */ (input);
    let value = field.value.trim();
    if (field.type === 'date' && value) {
      const day = new Date(`${value}T00:00:00`);
      if (name === 'to') day.setDate(day.getDate() + 1);
      value = day.toISOString().replace('.000', '');
    }
    go({ [String(name)]: value }, true);
  };
  /** @type {HTMLElement} */ (input).addEventListener('input', () => {
    clearTimeout(typing);
    typing = setTimeout(changed, /** @type {HTMLElement} */ (input).matches('select, [type=date]') ? 0 : TYPING_PAUSE);
  });
}

/** Puts into the inputs what the address says. */
function showFilters() {
  const [tab, given] = [tabOf(), address()];
  if (search !== document.activeElement) search.value = given.get('q') ?? '';
  const statuses = tab === 'mine' ? STATUSES : STATUSES.slice(1);
  fill(/** @type {HTMLElement} */ (inputs.status), h('option', { value: '' }, t('anyStatus')), statuses.map((status) => h('option', { value: status }, named('status', status))));
  fill(/** @type {HTMLElement} */ (inputs.sort),
    h('option', { value: '' }, t(tab === 'waiting' ? 'sortDeadline' : 'sortSettled')),
    h('option', { value: '-createdAt' }, t('sortNewest')));
  for (const [name, input] of Object.entries(inputs)) {
    let value = given.get(name) ?? '';
    if (input instanceof HTMLInputElement && input.type === 'date' && value) {
      const day = new Date(value);
      if (name === 'to') day.setDate(day.getDate() - 1);
      value = Number.isNaN(day.getTime()) ? '' : `${day.getFullYear()}-${String(day.getMonth() + 1).padStart(2, '0')}-${String(day.getDate()).padStart(2, '0')}`;
    }
    if (input !== document.activeElement) input.value = value;
  }
  /** @param {string} name @param {boolean} isShown */
  const show = (name, isShown) => { const label = labelled[name]; if (label) label.hidden = !isShown; };
  show('status', tab !== 'waiting');
  show('userId', tab !== 'mine');
  show('scope', tab !== 'mine' && (current()?.isAdmin ?? false));
  const used = FILTERS.filter((name) => name !== 'q' && name !== 'sort' && given.get(name));
  fill(more, used.length ? t('filtersUsed', { n: used.length }) : t('filters'));
  fill(chips, CHIPS.map((name) => {
    const value = given.get(name);
    return value && h('button', { type: 'button', class: 'chip', title: t('removeFilter'), onclick: () => go({ [name]: '' }) }, `${named('filter', name)}: `, theirs(value), ' ×');
  }));
}

let shownActions = '';
/** What the list has taught: its actions, and whether there are risks to choose from. */
function showFound() {
  const actions = [...new Set(list.items.slice(0, 500).map((item) => item.actionType))].sort().slice(0, 50);
  const hasRisks = address().has('risk') || list.items.slice(0, 500).some((item) => item.rule !== null || item.risk !== 'medium');
  if (labelled.risk) labelled.risk.hidden = !hasRisks;
  if (actions.join('\n') === shownActions) return;
  shownActions = actions.join('\n');
  fill(knownActions, actions.map((action) => h('option', { value: action })));
}

// ── Going about ──

const nobody = h('div', { class: 'nobody' }, h('p', null, t('chooseOne')));
const listView = h('section', { class: 'listview', 'aria-label': t('requests') }, filters, list.element);
const main = h('main', null, listView, tasks.element, grants.element, detail.element, nobody);
const signInDialog = h('dialog', { class: 'signin', 'aria-labelledby': 'signintitle' });
const helpDialog = h('dialog', { class: 'helpdialog', 'aria-labelledby': 'helptitle' });

/** What the list shows now. */
let listed = '';

/** On a phone not all tabs fit: the chosen one is seen. */
function showTab() {
  tabs[tabOf()]?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
}
addEventListener('resize', showTab);

/** Shows what the address says. */
function follow() {
  const [tab, id] = [tabOf(), address().get('request') ?? ''];
  for (const [name, link] of Object.entries(tabs)) {
    if (name === tab) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
    link.setAttribute('href', name === 'waiting' ? location.pathname : `?tab=${name}`);
  }
  if (tabs.remembered && tab === 'remembered') tabs.remembered.hidden = false;
  showTab();
  const isList = hasList(tab);
  listView.hidden = !isList;
  tasks.element.hidden = tab !== 'tasks';
  grants.element.hidden = tab !== 'remembered';
  nobody.hidden = !isList;
  document.body.classList.toggle('showsdetail', id !== '' && isList);
  document.body.classList.toggle('showstasks', !isList);
  if (!current()) return;
  const query = JSON.stringify([tab, queryOf()]);
  if (bulk.isOpen && (!isList || id || query !== listed)) leaveReview();
  if (tab === 'tasks') tasks.show(address().get('status') ?? '');
  else tasks.hide();
  if (tab === 'remembered') grants.show();
  else grants.hide();
  if (!isList) {
    detail.close();
    return;
  }
  showFilters();
  if (query !== listed) {
    listed = query;
    list.load(queryOf(), heard);
  }
  list.markOpened(id);
  if (id) detail.open(id, heard);
  else detail.close();
}

/**
 * @param {string} id
 * @param {boolean} [replaces]
 */
function open(id, replaces = false) {
  go({ request: id }, replaces || detail.id !== '');
  detail.screen.focus({ preventScroll: true });
}

function closeDetail() {
  const { id } = detail;
  go({ request: '' }, true);
  if (id) list.goTo(id);
}

/** Shows the selected requests, to decide them together. */
function review() {
  const items = list.selectedItems();
  if (!items.length || bulk.isOpen) return;
  go({ request: '' }, true);
  list.isReviewed = true;
  document.body.classList.add('showsbulk');
  main.append(bulk.element);
  bulk.open(items);
}

function leaveReview() {
  bulk.close();
  bulk.element.remove();
  list.isReviewed = false;
  document.body.classList.remove('showsbulk');
  list.settle();
  list.render(true);
}

function closeReview() {
  leaveReview();
  const first = list.active && list.known.has(list.active) ? list.active : list.beside(1);
  if (first) list.goTo(first);
}

/**
 * After a decision: the next request that waits for this person.
 * @param {string} id
 */
function next(id) {
  list.lookAt(id);
  if (detail.id !== id || tabOf() !== 'waiting') return;
  list.active = id;
  /** @param {import('./list.js').Item} item */
  const waits = (item) => item.requestId !== id && item.status === 'pending' && item.mayDecide;
  const following = list.beside(1, waits) || list.beside(-1, waits);
  if (!following) return;
  list.goTo(following, false);
  open(following, true);
}

/** @param {number} step */
function move(step) {
  const to = list.beside(step);
  if (!to) return;
  if (detail.id) {
    list.goTo(to, false);
    open(to, true);
  } else list.goTo(to);
}

addEventListener('popstate', follow);

// ── Keys ──

const KEYS = /** @type {const} */ ([
  ['j', 'keyNext'], ['k', 'keyPrevious'], ['Enter', 'keyOpen'], ['n', 'keyUnseen'], ['a', 'keyApprove'], ['r', 'keyReject'],
  ['x', 'keySelect'], ['s', 'keySelectAll'], ['b', 'keyReview'], ['.', 'keyNews'], ['/', 'keySearch'], ['Esc', 'keyBack'], ['?', 'keyHelp'],
]);

function showHelp() {
  fill(helpDialog,
    h('h2', { id: 'helptitle' }, t('help')),
    h('dl', null, KEYS.map(([name, text]) => h('div', null, h('dt', null, h('kbd', null, name)), h('dd', null, t(text))))),
    h('p', null, t('helpLock')),
    h('form', { method: 'dialog' }, h('button', { class: 'primary' }, t('close'))));
  helpDialog.showModal();
}

addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || detail.isDialogOpen) return;
  if (isTyping(event.target)) {
    if (event.key === 'Escape' && event.target === search) detail.id ? detail.screen.focus() : list.goTo(list.active || list.beside(1));
    return;
  }
  const isList = hasList(tabOf());
  /** @type {Record<string, () => void>} */
  const actions = {
    '?': showHelp,
    ...(isList && bulk.isOpen && {
      j: () => bulk.move(1),
      k: () => bulk.move(-1),
      n: () => bulk.next(),
      Escape: closeReview,
      a: () => { if (!event.repeat) bulk.approve(); },
      r: () => { if (!event.repeat) bulk.startReject(); },
    }),
    ...(isList && !bulk.isOpen && {
      j: () => move(1),
      k: () => move(-1),
      ArrowDown: () => { if (list.inner.contains(document.activeElement)) move(1); },
      ArrowUp: () => { if (list.inner.contains(document.activeElement)) move(-1); },
      n: () => detail.next(),
      '/': () => { search.focus(); search.select(); },
      '.': () => list.showNews(),
      x: () => { if (list.active && event.shiftKey) list.selectTo(list.active, true); else if (list.active) list.select(list.active); },
      s: () => list.selectAll(),
      b: () => review(),
      Escape: () => { if (detail.id) closeDetail(); },
      // A key that is held down decides nothing.
      a: () => { if (!event.repeat && detail.id) detail.approve(); else if (!event.repeat && list.active) open(list.active); },
      r: () => { if (!event.repeat && detail.id) detail.startReject(); else if (!event.repeat && list.active) open(list.active); },
    }),
  };
  const isRowsKey = event.key.startsWith('Arrow');
  // A keyboard that writes Hangul has the same keys.
  const letter = /^[\x20-\x7E]$/.test(event.key) ? event.key.toLowerCase() : /^Key([A-Z])$/.exec(event.code)?.[1]?.toLowerCase();
  const action = actions[letter ?? event.key];
  if (!action || (isRowsKey && !list.inner.contains(document.activeElement))) return;
  event.preventDefault();
  action();
});

// ── Who is signed in ──

function askToSignIn() {
  if (signInDialog.open) return;
  const hadSession = signedInAs !== '';
  const token = h('textarea', { rows: '4', 'aria-label': t('token'), spellcheck: 'false', autocomplete: 'off' });
  const problem = h('p', { class: 'problem', role: 'alert' });
  fill(signInDialog,
    h('h2', { id: 'signintitle' }, t(hadSession ? 'signInAgain' : 'signIn')),
    h('p', null, t(hadSession ? 'signInAgainHow' : 'signInHow')),
    h('form', {
      onsubmit: (/** @type {Event} */ event) => {
        event.preventDefault();
        if (!signIn(token.value)) fill(problem, t('notAToken'));
      },
    }, h('label', null, h('span', null, t('token')), token), problem,
    h('div', { class: 'buttons' },
      hadSession && h('button', { type: 'button', onclick: () => signInDialog.close() }, t('later')),
      h('button', { class: 'primary' }, t('signIn')))));
  signInDialog.showModal();
}
signInDialog.addEventListener('cancel', (event) => { if (signedInAs === '') event.preventDefault(); });

/** Whose requests are shown: tenant and user. */
let signedInAs = '';
let created = 0;
let createdTimer = 0;
let detailTimer = 0;
let wasLost = false;

function showAccount() {
  const session = current();
  fill(account,
    session && h('span', { class: 'who', title: t('signedInAs') }, theirs(session.user), h('span', { class: 'tenant' }, ' · ', theirs(session.tenant))),
    session?.isOurs && h('button', { type: 'button', class: 'quiet', onclick: () => signOut() }, t('signOut')),
    !session && h('button', { type: 'button', class: 'primary', onclick: () => askToSignIn() }, t('signIn')));
}

/** @param {'connecting' | 'live' | 'offline'} state */
function showConnection(state) {
  const text = t(state === 'live' ? 'live' : state === 'connecting' ? 'connecting' : navigator.onLine ? 'reconnecting' : 'offline');
  if (connection.textContent === text) return;
  // Its loss is news, and its return.
  if (state === 'offline' || (state === 'live' && wasLost)) announce(text);
  wasLost = state === 'offline' || (wasLost && state !== 'live');
  connection.className = `connection ${state}`;
  fill(connection, text);
}

/** @param {{ decidable: number, mine: number }} counts */
function showCounts(counts) {
  showCount(counts.decidable);
  /** @param {number} number */
  const text = (number) => (number > 10000 ? '10000+' : number > 0 ? String(number) : '');
  for (const [tab, number] of /** @type {const} */ ([['waiting', counts.decidable], ['mine', counts.mine]])) {
    const shown = tabs[tab]?.querySelector('.badge');
    if (shown) fill(shown, text(number));
  }
}

/** Resolves when changes are heard: see `start`. */
let heard = Promise.resolve();

function listen() {
  heard = start({
    counts: showCounts,
    request: (change) => {
      // One that is known already says something else now.
      const isNew = change.change === 'created' && !list.known.has(change.requestId) && change.requestId !== detail.id;
      list.changed(change);
      if (isNew) {
        created += 1;
        createdTimer ||= setTimeout(() => {
          announce(t('announceNew', { n: created }));
          created = createdTimer = 0;
        }, 1500);
      }
      bulk.changed(change.requestId);
      if (change.requestId === detail.id) {
        clearTimeout(detailTimer);
        detailTimer = setTimeout(() => { if (change.requestId === detail.id) detail.read(); }, 200);
      }
    },
    state: showConnection,
    again: () => {
      list.mayBeStale = true;
      list.settle();
      list.render();
      if (detail.id) detail.read();
      bulk.readAll();
    },
  });
}

function sessionChanged() {
  const session = current();
  showAccount();
  if (!session) {
    stop();
    showConnection('offline');
    askToSignIn();
    return;
  }
  if (signInDialog.open) signInDialog.close();
  // First of all, so that no change is missed of what is read.
  listen();
  const as = JSON.stringify([session.tenant, session.user]);
  const isSomebodyElse = signedInAs !== '' && as !== signedInAs;
  if (isSomebodyElse) {
    detail.close();
    if (bulk.isOpen) leaveReview();
    announce(t('nowSignedInAs', { user: session.user }));
  }
  if (as !== signedInAs) {
    signedInAs = as;
    belongTo(as);
    listed = '';
    grants.hide();
    if (tabs.remembered) tabs.remembered.hidden = true;
    follow();
    offerTasks();
    offerGrants();
  } else {
    heard.then(() => {
      detail.signedIn();
      bulk.signedIn();
      list.reload();
    });
  }
}

/** A Gateway may not lead to the tasks: then there is nothing to show. */
async function offerTasks() {
  const session = current();
  if (!session) return;
  const answer = await api.tasks({ userId: session.user, tenantId: session.tenant, size: 1 });
  const tab = tabs.tasks;
  if (tab) tab.hidden = !(answer.ok || answer.code.startsWith('E') && answer.status !== 404);
}

/** Where no rule lets approvals be remembered there is nothing to show. */
async function offerGrants() {
  const answer = await api.grants();
  if (tabs.remembered && answer.ok && answer.data.grants.length) tabs.remembered.hidden = false;
}

onSessionChange(sessionChanged);
addEventListener('online', () => showConnection('connecting'));
addEventListener('offline', () => showConnection('offline'));

if (tabs.tasks) tabs.tasks.hidden = tabOf() !== 'tasks';
if (tabs.remembered) tabs.remembered.hidden = tabOf() !== 'remembered';
fill(document.body, header, main, live, toast, signInDialog, helpDialog);
showCount(0);
if (!current()) follow();
sessionChanged();
if (lostSelection) announce(t('selectionLost', { n: lostSelection }));

