/**
 * The agents' tasks: what each does, how far it is, and which request it waits for.
 */
import { api, isTemporary } from './api.js';
import { fields, longText } from './content.js';
import { fill, h } from './dom.js';
import { member, parseJson } from './json.js';
import { NO_LOCK } from './seen.js';
import { current } from './session.js';
import { named, t, time } from './text.js';
import { theirs, visible, warning, hiddenIn } from './visible.js';

/** @typedef {import('./json.js').Json} Json */

const PAGE = 50;
const INTERVAL = 4000;
const STATUSES = /** @type {const} */ (['REQUESTED', 'IN_PROGRESS', 'WAITING_APPROVAL', 'COMPLETED', 'FAILED']);

export class Tasks {
  /** @param {{ open: (id: string) => void, linkTo: (id: string) => string, statusChosen: (status: string) => void }} options */
  constructor(options) {
    this.options = options;
    this.pages = 1;
    this.status = '';
    this.isShown = false;
    this.generation = 0;
    /** @type {Map<string, { element: HTMLDetailsElement, text: string }>} */
    this.shown = new Map();
    this.filter = h('select', { 'aria-label': t('status'), onchange: () => options.statusChosen(this.filter.value) },
      h('option', { value: '' }, t('anyStatus')), STATUSES.map((status) => h('option', { value: status }, named('task', status))));
    this.count = h('span', { class: 'count' });
    this.rows = h('div', { class: 'tasks' });
    this.end = h('div', { class: 'empty' });
    this.scroll = h('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': t('tabTasks') }, this.rows, this.end);
    this.element = h('section', { class: 'taskview', 'aria-labelledby': 'taskstitle' }, h('h2', { class: 'unseen', id: 'taskstitle' }, t('tabTasks')), h('div', { class: 'listbar' }, this.count, this.filter), this.scroll);
    setInterval(() => {
      if (this.isShown && document.visibilityState === 'visible' && current()) this.read();
    }, INTERVAL);
  }

  /** @param {string} status */
  show(status) {
    this.isShown = true;
    this.pages = 1;
    this.status = STATUSES.some((known) => known === status) ? status : '';
    this.filter.value = this.status;
    this.read();
  }

  hide() {
    this.isShown = false;
  }

  async read() {
    const generation = ++this.generation;
    const session = current();
    if (!session) return;
    const who = session.isAdmin ? {} : { userId: session.user };
    /** @type {{ text: string, json: Json }[]} */
    const tasks = [];
    let total = 0;
    for (let page = 0; page < this.pages; page += 1) {
      const answer = await api.tasks({ ...who, tenantId: session.tenant, status: this.status, page, size: PAGE });
      if (generation !== this.generation) return;
      if (!answer.ok) {
        fill(this.end,
          h('p', { class: 'problem', role: 'alert' }, answer.message || t(answer.status ? 'unexpected' : 'unreachable')),
          isTemporary(answer) && h('p', null, t('triesAgain')));
        return;
      }
      const content = member(member(parseJson(answer.text), 'data'), 'content');
      if (content?.kind === 'array') tasks.push(...content.items.map((json) => ({ text: answer.text, json })));
      total = answer.data.totalElements;
      if (answer.data.last) break;
    }
    this.render(tasks, total);
  }

  /**
   * @param {{ text: string, json: Json }[]} tasks
   * @param {number} total
   */
  render(tasks, total) {
    const ids = new Set();
    /** @type {Element | null} */
    let next = this.rows.firstElementChild;
    for (const { text, json } of tasks) {
      const task = JSON.parse(text.slice(json.start, json.end));
      if (ids.has(task.taskId)) continue;
      ids.add(task.taskId);
      const written = text.slice(json.start, json.end);
      let row = this.shown.get(task.taskId);
      if (!row) {
        row = { element: h('details', { class: 'task' }, h('summary'), h('div', { class: 'taskbody' })), text: '' };
        this.shown.set(task.taskId, row);
      }
      if (row.text !== written) {
        row.text = written;
        this.fillTask(row.element, task, text, json);
      }
      if (row.element === next) next = row.element.nextElementSibling;
      else this.rows.insertBefore(row.element, next);
    }
    for (const [id, { element }] of this.shown) {
      if (ids.has(id)) continue;
      element.remove();
      this.shown.delete(id);
    }
    fill(this.count, t('taskCount', { n: total }));
    fill(this.end,
      !ids.size && h('p', null, t(this.status ? 'nothingFound' : 'noTasks')),
      ids.size < total && ids.size >= this.pages * PAGE && h('button', { type: 'button', onclick: () => { this.pages += 1; this.read(); } }, t('showMore')));
  }

  /**
   * @param {HTMLDetailsElement} element
   * @param {any} task
   * @param {string} text
   * @param {Json} json
   */
  fillTask(element, task, text, json) {
    const [summary, body] = /** @type {HTMLElement[]} */ ([...element.children]);
    const waitsFor = task.status === 'WAITING_APPROVAL' && task.hitlRequestId;
    fill(/** @type {HTMLElement} */ (summary),
      h('span', { class: 'first' },
        theirs(task.taskType, 'action'), warning(hiddenIn(task.taskType)),
        h('span', { class: `status end ${task.status}` }, named('task', task.status))),
      task.description && h('span', { class: 'message' }, theirs(task.description)),
      h('span', { class: 'last' },
        h('progress', { max: '100', value: String(task.progress), 'aria-label': t('progress') }), h('span', null, `${task.progress}%`),
        theirs(task.userId), h('span', { class: 'end' }, time(task.updatedAt))));
    const steps = plan(task.planSteps);
    /** @param {string} name */
    const data = (name) => {
      const value = member(json, name);
      if (!value || (value.kind === 'literal' && value.text === 'null')) return null;
      return h('section', { class: 'part' }, h('h3', null, t(name === 'inputData' ? 'inputData' : 'resultData')),
        value.kind === 'object' && value.entries.length ? fields(text, value, 1, NO_LOCK) : longText(text.slice(value.start, value.end), NO_LOCK, 'raw'));
    };
    fill(/** @type {HTMLElement} */ (body),
      waitsFor && h('p', null, h('a', {
        href: this.options.linkTo(task.hitlRequestId),
        onclick: (/** @type {MouseEvent} */ event) => { event.preventDefault(); this.options.open(task.hitlRequestId); },
      }, t('waitsForRequest'))),
      task.errorMessage && h('section', { class: 'part' }, h('h3', null, t('taskError')), longText(task.errorMessage, NO_LOCK)),
      steps.length > 0 && h('section', { class: 'part' }, h('h3', null, t('planSteps')), h('ol', { class: 'steps' }, steps.map((step) => h('li', { class: `step ${step.status}` },
        h('span', { class: 'status' }, named('step', step.status)),
        h('bdi', { class: 'theirs' }, visible(step.text)),
        step.confidence !== null && h('span', { class: 'confidence' }, t('confidence', { n: Math.round(step.confidence * 100) })))))),
      data('inputData'), data('resultData'),
      h('dl', { class: 'facts' },
        [['taskId', theirs(task.taskId, 'id')], ['created', time(task.createdAt)], ['started', time(task.startedAt)], ['completed', time(task.completedAt)]]
          .filter(([, value]) => value)
          .map(([name, value]) => h('div', null, h('dt', null, t(/** @type {import('./text.js').Key} */ (name))), h('dd', null, value)))));
  }
}

/**
 * @param {string} text
 * @returns {{ status: string, text: string, confidence: number | null }[]}
 */
function plan(text) {
  try {
    const steps = JSON.parse(text);
    return Array.isArray(steps) ? steps.map((step) => ({
      status: String(step?.status ?? ''),
      text: String(step?.description ?? step?.title ?? step?.stepId ?? step?.id ?? ''),
      confidence: typeof step?.confidence === 'number' ? step.confidence : null,
    })) : [];
  } catch {
    return [];
  }
}
