/**
 * Calls of the service, as the person who is signed in. Addresses are relative to the page's.
 */
import { current, refuse } from './session.js';
import { compareClocks, language } from './text.js';

/**
 * @typedef {object} Answer
 * @property {number} status 0 when there was no answer.
 * @property {boolean} ok
 * @property {any} data
 * @property {string} message For people, in their language.
 * @property {string} code `E…`, or empty.
 * @property {string} etag Without quotes.
 * @property {string} text The whole body.
 * @property {number} retryAfter Seconds; 0 when it does not say.
 */

const ROOT = '../';
const TASKS = '../../../main/agent/tasks';
const TIMEOUT = 15000;
/** Answers after which the same call may be made again: nothing was decided, or it would be the same. */
const TEMPORARY = [0, 408, 429, 502, 503, 504];

/** @param {{ status: number }} answer */
export function isTemporary(answer) {
  return TEMPORARY.includes(answer.status);
}

/** @returns {Record<string, string>} */
export function headers() {
  const session = current();
  /** @type {Record<string, string>} */
  const all = { 'Accept-Language': language, 'X-DWP-Source': 'FRONTEND', 'X-DWP-Caller-Type': 'USER' };
  if (!session) return all;
  return {
    ...all,
    Authorization: `Bearer ${session.token}`,
    'X-Tenant-ID': encodeURIComponent(session.tenant),
    'X-User-ID': encodeURIComponent(session.user),
  };
}

/**
 * @param {string} method
 * @param {string} address
 * @param {{ body?: unknown, text?: string, ifMatch?: string, signal?: AbortSignal }} [options] `text`: a body that is JSON already.
 * @returns {Promise<Answer>}
 */
async function call(method, address, { body, text: json, ifMatch, signal } = {}) {
  const token = current()?.token ?? '';
  const sent = headers();
  if (json === undefined && body !== undefined) json = JSON.stringify(body);
  if (json !== undefined) sent['Content-Type'] = 'application/json';
  if (ifMatch) sent['If-Match'] = `"${ifMatch}"`;
  const timeout = AbortSignal.timeout(TIMEOUT);
  /** @type {Answer} */
  const answer = { status: 0, ok: false, data: undefined, message: '', code: '', etag: '', text: '', retryAfter: 0 };
  const abort = new AbortController();
  for (const one of signal ? [signal, timeout] : [timeout]) one.addEventListener('abort', () => abort.abort());
  try {
    const response = await fetch(address, {
      method, headers: sent, body: json ?? null, signal: abort.signal, cache: 'no-store', credentials: 'omit', redirect: 'error',
    });
    answer.text = await response.text();
    answer.status = response.status;
    answer.etag = (response.headers.get('ETag') ?? '').replace(/^"|"$/g, '');
    answer.retryAfter = Number(response.headers.get('Retry-After')) || 0;
  } catch {
    return answer;
  }
  try {
    const envelope = JSON.parse(answer.text);
    answer.ok = answer.status < 300 && envelope.success === true;
    answer.data = envelope.data;
    answer.message = envelope.message ?? '';
    answer.code = envelope.errorCode ?? '';
    if (envelope.timestamp) compareClocks(envelope.timestamp);
  } catch {
    // Not the service's: a proxy on the way.
    answer.ok = false;
  }
  if (answer.status === 401) refuse(token);
  return answer;
}

/**
 * @param {string} id
 */
const part = (id) => encodeURIComponent(id);

/** @param {Record<string, string | number | undefined | null>} query */
function queryOf(query) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== '') parameters.set(name, String(value));
  }
  return parameters.size ? `?${parameters}` : '';
}

export const api = {
  /**
   * @param {Record<string, string | number | undefined | null>} query
   * @param {AbortSignal} [signal]
   */
  list: (query, signal) => call('GET', `${ROOT}requests${queryOf(query)}`, { signal }),
  /**
   * @param {string} id
   * @param {AbortSignal} [signal]
   */
  detail: (id, signal) => call('GET', `${ROOT}requests/${part(id)}/detail`, { signal }),
  /**
   * @param {string} id
   * @param {AbortSignal} [signal]
   */
  document: (id, signal) => call('GET', `${ROOT}requests/${part(id)}`, { signal }),
  /**
   * @param {string} verb
   * @param {string} id
   * @param {Record<string, unknown>} body
   * @param {string} etag
   * @param {Record<string, string>} [json] Further fields whose values are JSON already, sent to the letter.
   */
  decide: (verb, id, body, etag, json = {}) => {
    const further = Object.entries(json).map(([name, value]) => `,${JSON.stringify(name)}:${value}`).join('');
    const text = `${JSON.stringify({ userId: current()?.user, ...body }).slice(0, -1)}${further}}`;
    return call('POST', `${ROOT}${verb}/${part(id)}`, { text, ifMatch: etag });
  },
  /** @param {import('./decisions.js').One[]} decisions */
  decideSeveral: (decisions) => call('POST', `${ROOT}decisions`, { body: { userId: current()?.user, decisions } }),
  /**
   * @param {string} id
   * @param {string} text
   */
  comment: (id, text) => call('POST', `${ROOT}requests/${part(id)}/comments`, { body: { text } }),
  /**
   * @param {Record<string, string | number | undefined | null>} query
   */
  tasks: (query) => call('GET', `${TASKS}${queryOf(query)}`),
  grants: () => call('GET', `${ROOT}grants`),
  /** @param {string} id */
  endGrant: (id) => call('DELETE', `${ROOT}grants/${part(id)}`),
  stream: `${ROOT}inbox/stream`,
};
