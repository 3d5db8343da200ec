/**
 * What a person has begun to write, until it is sent: it outlives a lost sign-in and a reload of the page, but not
 * that somebody else signs in.
 */

const STORED = 'aura-hitl-drafts';
const OWNER = 'aura-hitl-drafts-of';

/** @type {Map<string, string>} */
const drafts = new Map(read());

/** @returns {[string, string][]} */
function read() {
  try { return Object.entries(JSON.parse(sessionStorage.getItem(STORED) ?? '{}')); } catch { return []; }
}

/** @param {string} key */
export function draft(key) {
  return drafts.get(key) ?? '';
}

/**
 * @param {string} key
 * @param {string} text
 */
export function keep(key, text) {
  if (text) drafts.set(key, text);
  else drafts.delete(key);
  try { sessionStorage.setItem(STORED, JSON.stringify(Object.fromEntries(drafts))); } catch { /* In memory, then. */ }
}

/**
 * Says who writes from now on. What another person has begun goes.
 * @param {string} who
 */
export function belongTo(who) {
  try {
    if (sessionStorage.getItem(OWNER) === who) return;
    for (const key of [...drafts.keys()]) keep(key, '');
    sessionStorage.setItem(OWNER, who);
  } catch { drafts.clear(); }
}

/** @param {string} id */
export function forget(id) {
  for (const key of drafts.keys()) if (key.startsWith(`${id} `)) keep(key, '');
}
