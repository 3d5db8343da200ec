/**
 * Decisions on their way. One that the service cannot take now is sent again until it is taken, refused, or
 * stopped by the person: to decide the same way twice is safe.
 */
import { api, isTemporary } from './api.js';
import { h } from './dom.js';
import { current } from './session.js';
import { t } from './text.js';

/**
 * @typedef {import('./api.js').Answer} Answer
 * @typedef {object} Job
 * @property {string} id
 * @property {string} verb `approve`, `reject` or `respond`.
 * @property {number} attempt
 * @property {number} again When the next attempt is made, in milliseconds; 0 while one is under way.
 * @property {Answer | null} last
 * @property {() => void} stop
 * @property {() => void} now
 */

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 15000;

/** @type {Map<string, Job>} */
const jobs = new Map();
/** @type {Set<(id: string) => void>} */
const listeners = new Set();

/** @param {string} id */
export function jobOf(id) {
  return jobs.get(id);
}

/** @param {(id: string) => void} listener */
export function onJobChange(listener) {
  listeners.add(listener);
}

/** @param {string} id */
const tell = (id) => listeners.forEach((listener) => listener(id));

/**
 * @param {string} verb
 * @param {string} id
 * @param {Record<string, unknown>} body
 * @param {string} etag
 * @param {Record<string, string>} [json] Further fields, as JSON.
 * @returns {Promise<Answer | null>} The answer that settles it; `null` when the person stopped it, or it was
 *   on its way already.
 */
export function decide(verb, id, body, etag, json) {
  return insist(verb, id, () => api.decide(verb, id, body, etag, json));
}

/** How the names of jobs begin that decide several. */
export const BULK = ' bulk';

/**
 * @typedef {{ requestId: string, decision: string, etag: string, reason?: string }} One
 * @typedef {{ requestId: string, status: number, data?: any, errorCode?: string, message: string }} Result
 */

/**
 * Decides several, each by itself. Those that the service could not judge now are sent again.
 * @param {string} id The name of the job.
 * @param {string} verb
 * @param {One[]} wanted
 * @param {(results: Result[]) => void} judged Is told of those that are settled.
 * @returns {Promise<Answer | null>}
 */
export function decideSeveral(id, verb, wanted, judged) {
  let rest = wanted;
  return insist(verb, id, async () => {
    const answer = await api.decideSeveral(rest);
    if (!answer.ok) return answer;
    /** @type {Result[]} */
    const results = answer.data.results;
    const open = results.find(isTemporary);
    rest = rest.filter((_one, place) => results[place] && isTemporary(results[place]));
    judged(results.filter((result) => !isTemporary(result)));
    return open ? { ...answer, ok: false, status: open.status, message: open.message } : answer;
  });
}

const who = () => JSON.stringify([current()?.tenant, current()?.user]);

/**
 * Makes a call until it is answered for good, the person stops it, or another person has signed in.
 * @param {string} verb
 * @param {string} id
 * @param {() => Promise<Answer>} call
 * @returns {Promise<Answer | null>}
 */
async function insist(verb, id, call) {
  if (jobs.has(id)) return null;
  const by = who();
  let isStopped = false;
  let wake = () => {};
  /** @type {Job} */
  const job = {
    id, verb, attempt: 0, again: 0, last: null,
    stop: () => { isStopped = true; wake(); },
    now: () => wake(),
  };
  jobs.set(id, job);
  try {
    for (;;) {
      job.attempt += 1;
      job.again = 0;
      tell(id);
      const answer = await call();
      if (!isTemporary(answer)) return answer;
      if (isStopped) return null;
      const pause = Math.max(answer.retryAfter * 1000, Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (job.attempt - 1)));
      job.last = answer;
      job.again = Date.now() + pause;
      tell(id);
      await new Promise((done) => {
        const timer = setTimeout(() => done(undefined), pause);
        wake = () => { clearTimeout(timer); done(undefined); };
      });
      // Whoever has signed in meanwhile has decided nothing.
      if (isStopped || who() !== by) return null;
    }
  } finally {
    jobs.delete(id);
    tell(id);
  }
}

/**
 * What is under way, in place of the buttons.
 * @param {Job} job
 */
export function jobView(job) {
  return h('div', { class: 'job', role: 'status' },
    h('p', null, job.again
      ? [job.last?.message || t('unreachable'), ' ', h('span', { class: 'wait' })]
      : t('sending')),
    job.again > 0 && h('div', { class: 'buttons' },
      h('button', { type: 'button', 'data-name': 'stop', onclick: () => job.stop() }, t('stopTrying')),
      h('button', { type: 'button', 'data-name': 'now', class: 'primary', onclick: () => job.now() }, t('tryNow'))));
}

/**
 * Counts down to the next attempt.
 * @param {Job | undefined} job
 * @param {Element} within
 */
export function tickJob(job, within) {
  const wait = within.querySelector('.wait');
  if (job?.again && wait) wait.textContent = t('triesAgainIn', { n: Math.max(0, Math.ceil((job.again - Date.now()) / 1000)) });
}
