/**
 * One request as the service tells it in full, and its content as elements: the same for one request and for
 * several that are reviewed together.
 */
import { api } from './api.js';
import { fields, longText } from './content.js';
import { h } from './dom.js';
import { indented, member, parseJson, plain } from './json.js';
import { NO_LOCK } from './seen.js';
import { t } from './text.js';

/**
 * @typedef {import('./api.js').Answer} Answer
 * @typedef {import('./json.js').Json} Json
 * @typedef {import('./list.js').Item} Item
 * @typedef {{ at: string, event: string, by?: string }} Happened
 * @typedef {{ userId: string, decision: string, argumentsFingerprint?: string, at: string, reason?: string | null, counted: boolean }} Vote
 * @typedef {{ number: number, userId: string, author: string, text: string, at: string }} Comment
 * @typedef {Item & { history: Happened[], why: string, votes: Vote[], comments: Comment[],
 *   signal: { state: string, sentAt?: string, listeners?: number }, remember?: string, grantId?: string }} Shown
 *
 * @typedef {object} Request
 * @property {Shown} shown All but the context.
 * @property {string} text The service's answer.
 * @property {Json | undefined} context Within `text`.
 * @property {string} document The request as it was written; empty where the answer says all of it.
 * @property {string} written The context as it was written, indented.
 * @property {Record<string, string>} decidedAs What was decided in place of what was asked: texts of JSON.
 * @property {Record<string, string>} schemas Texts of JSON: `argumentsSchema`, `responseSchema`.
 */

/** What the page shows by name; everything else that a request says is shown as further fields. */
const NAMED = new Set(['requestId', 'sessionId', 'tenantId', 'userId', 'actionType', 'message', 'context', 'planSteps', 'taskId',
  'createdAt', 'status', 'approvedBy', 'approvedAt', 'rejectedBy', 'rejectedAt', 'reason', 'expiresInSeconds',
  'decisions', 'risk', 'argumentsSchema', 'responseSchema']);

/**
 * Reads a request.
 * @param {string} id
 * @param {AbortSignal} signal
 * @param {boolean} [needsDocument] Also when its agent registered it, which leaves no further fields.
 * @returns {Promise<{ failed: Answer } | Request>}
 */
export async function readRequest(id, signal, needsDocument = true) {
  for (let attempt = 0; ; attempt += 1) {
    /** @type {[Answer, Answer | null]} */
    let answers;
    if (needsDocument) answers = await Promise.all([api.detail(id, signal), api.document(id, signal)]);
    else {
      const detail = await api.detail(id, signal);
      answers = [detail, detail.ok && detail.data.origin !== 'http' ? await api.document(id, signal) : null];
    }
    const [detail, document] = answers;
    const failed = answers.find((answer) => answer?.ok === false);
    if (failed) return { failed };
    // It may have changed between the two answers.
    if (document && detail.etag !== document.etag && attempt < 5) continue;
    return requestOf(detail.text, document ? String(document.data) : '');
  }
}

/**
 * @param {string} text
 * @param {string} document
 * @returns {Request}
 */
function requestOf(text, document) {
  const data = member(parseJson(text), 'data');
  /** @type {any} */
  const shown = {};
  /** @type {Request} */
  const request = { shown, text, context: undefined, document, written: '', decidedAs: {}, schemas: {} };
  for (const [name, value] of data?.kind === 'object' ? data.entries : []) {
    if (name === 'context') {
      request.context = value;
      request.written = indented(text, value);
    } else if (name === 'argumentsSchema' || name === 'responseSchema') request.schemas[name] = text.slice(value.start, value.end);
    else shown[name] = plain(text, value);
    if (name === 'arguments' || name === 'response') request.decidedAs[name] = indented(text, value);
  }
  return request;
}

/**
 * Everything that a request says, but its action.
 * @param {Request} request
 * @param {import('./seen.js').Seen} seen
 * @returns {import('./dom.js').Child[]}
 */
export function contentOf({ shown, text, context, document: written }, seen) {
  const requester = h('div', { class: 'value' }, shown.userId
    ? longText(shown.userId, seen, '', true)
    : h('span', { class: 'nothing' }, t('nobody')));
  const document = written ? parsed(written) : undefined;
  // An agent may keep its plan in the context, where it is shown already.
  const steps = (!written || member(document, 'planSteps')) && planSteps(text, seen);
  const further = document?.kind === 'object' ? document.entries.filter(([name]) => !NAMED.has(name)) : [];
  const exact = h('details', { class: 'exact' }, h('summary', null, t('exactJson', { n: written.length })));
  exact.addEventListener('toggle', () => {
    if (!exact.open || exact.childElementCount > 1) return;
    // Not a part of the lock: the fields say the same.
    exact.append(longText(document ? indented(written, document) : written, NO_LOCK, 'raw'));
  });
  return [
    shown.message !== null && section(t('message'), longText(shown.message, seen, 'lead')),
    section(t('context'), context && context.kind === 'object' && context.entries.length
      ? fields(text, context, 0, seen)
      : context && context.kind !== 'object' ? longText(text.slice(context.start, context.end), seen, 'raw') : h('p', { class: 'nothing' }, t('noFields'))),
    further.length > 0 && document && section(t('furtherFields'), fields(written, document, 0, seen, (name) => !NAMED.has(name))),
    steps && section(t('planSteps'), steps),
    section(t('asksFor'), h('div', { class: 'fields' },
      h('div', { class: 'field' }, h('span', { class: 'name' }, t('requester')), requester))),
    written !== '' && exact,
  ];
}

/**
 * @param {string} text
 * @param {import('./seen.js').Seen} seen
 */
function planSteps(text, seen) {
  const steps = member(member(parsed(text), 'data'), 'planSteps');
  if (steps?.kind !== 'array' || !steps.items.length) return null;
  return fields(text, steps, 0, seen);
}

/**
 * @param {string} title
 * @param {...import('./dom.js').Child} children
 */
export function section(title, ...children) {
  return h('section', { class: 'part' }, h('h3', null, title), ...children);
}

/** @param {string} text */
export function parsed(text) {
  try { return parseJson(text); } catch { return undefined; }
}
