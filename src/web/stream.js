/**
 * The inbox stream: fetch, since an EventSource sends no headers. Connects again by itself, and says when what was
 * read before may have changed meanwhile.
 */
import { api, headers } from './api.js';
import { current, refuse } from './session.js';

/**
 * @typedef {{ requestId: string, status: string, change: string }} Change
 * @typedef {object} Listener
 * @property {(counts: { decidable: number, mine: number }) => void} counts
 * @property {(change: Change) => void} request
 * @property {(state: 'connecting' | 'live' | 'offline') => void} state
 * @property {() => void} again Connected, after changes may have been missed.
 */

/** The service sends a comment every 15 s. */
const SILENCE = 40000;
const LONGEST_PAUSE = 20000;
/** How long reading waits for the stream: a page shows something although the stream takes long. */
const PATIENCE = 1000;

/** @type {AbortController | null} */
let running = null;

export function stop() {
  running?.abort();
  running = null;
}

/**
 * @param {Listener} listener
 * @returns {Promise<void>} Resolves when changes are heard: who reads after that misses none. If that takes long, it
 * resolves earlier, and `again` is called once they are heard.
 */
export function start(listener) {
  stop();
  const mine = new AbortController();
  running = mine;
  return new Promise((done) => {
    listen(listener, mine.signal, done).finally(done);
  });
}

/**
 * @param {Listener} listener
 * @param {AbortSignal} stopped
 * @param {() => void} heard Called at the first connection, or when it has failed or takes long.
 */
async function listen(listener, stopped, heard) {
  let failures = 0;
  let isBehind = false;
  const behind = () => {
    isBehind = true;
    heard();
  };
  const patience = setTimeout(behind, PATIENCE);
  while (!stopped.aborted && current()) {
    listener.state(failures || !navigator.onLine ? 'offline' : 'connecting');
    const token = current()?.token ?? '';
    const abort = new AbortController();
    stopped.addEventListener('abort', () => abort.abort(), { once: true });
    let watchdog = setTimeout(() => abort.abort(), SILENCE);
    try {
      const response = await fetch(api.stream, {
        headers: { ...headers(), Accept: 'text/event-stream' }, signal: abort.signal, cache: 'no-store', credentials: 'omit',
      });
      if (response.status === 401) {
        refuse(token);
        return;
      }
      if (response.ok && response.body) {
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let unread = '';
        for (;;) {
          const { done, value } = await reader.read();
          if (done || stopped.aborted) break;
          clearTimeout(watchdog);
          watchdog = setTimeout(() => abort.abort(), SILENCE);
          failures = 0;
          listener.state('live');
          clearTimeout(patience);
          if (isBehind) listener.again();
          isBehind = false;
          heard();
          unread += value;
          const events = unread.split(/\r?\n\r?\n/);
          unread = events.pop() ?? '';
          for (const event of events) tell(listener, event);
        }
      }
    } catch {
      // Broken off; try again.
    }
    clearTimeout(watchdog);
    abort.abort();
    if (stopped.aborted) return;
    behind();
    failures += 1;
    listener.state('offline');
    await pause(Math.min(LONGEST_PAUSE, 500 * 2 ** failures) * (0.7 + 0.6 * Math.random()), stopped);
  }
}

/**
 * @param {Listener} listener
 * @param {string} text
 */
function tell(listener, text) {
  let name = '';
  let data = '';
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith('event:')) name = line.slice(6).trim();
    if (line.startsWith('data:')) data += line.slice(5).trim();
  }
  if (!data) return;
  if (name === 'counts') listener.counts(JSON.parse(data));
  if (name === 'request') listener.request(JSON.parse(data));
}

/**
 * Waits, but not beyond the moment at which the network is back.
 * @param {number} milliseconds
 * @param {AbortSignal} stopped
 */
function pause(milliseconds, stopped) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener('online', end);
      done(undefined);
    };
    const timer = setTimeout(end, milliseconds);
    addEventListener('online', end, { once: true });
    stopped.addEventListener('abort', end, { once: true });
  });
}
