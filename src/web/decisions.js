/**
 * Decisions on their way. One that the service cannot take now is sent again until it is taken, refused, or
 * stopped by the person: to decide the same way twice is safe.
 */
import { api, isTemporary } from './api.js';

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
export async function decide(verb, id, body, etag, json) {
  if (jobs.has(id)) return null;
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
      const answer = await api.decide(verb, id, body, etag, json);
      if (!isTemporary(answer)) return answer;
      const pause = Math.max(answer.retryAfter * 1000, Math.min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (job.attempt - 1)));
      job.last = answer;
      job.again = Date.now() + pause;
      tell(id);
      await new Promise((done) => {
        const timer = setTimeout(() => done(undefined), pause);
        wake = () => { clearTimeout(timer); done(undefined); };
      });
      if (isStopped) return null;
    }
  } finally {
    jobs.delete(id);
    tell(id);
  }
}
