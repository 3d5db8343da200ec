/**
 * Who is signed in. The token comes from the address's fragment, which is removed at once; else from the
 * storage of the platform's frontend; else the person is asked for it. A token that was given to this page
 * stays in this tab.
 */
import { member, parseJson } from './json.js';

/**
 * @typedef {{ token: string, user: string, tenant: string, isAdmin: boolean, expires: number, isOurs: boolean }} Session
 *   `expires` in Unix milliseconds; `isOurs`: given to this page, so that the person can sign out of it.
 */

const STORED = 'aura-hitl-token';
const PLATFORM_KEY = document.documentElement.dataset.tokenKey ?? '';

/** @type {Session | null} */
let session = null;
/** The token that the service has refused. */
let refused = '';
/** @type {Set<() => void>} */
const listeners = new Set();

/**
 * @param {string} token
 * @param {boolean} isOurs
 * @returns {Session | null}
 */
function read(token, isOurs) {
  try {
    const payload = (token.split('.')[1] ?? '').replaceAll('-', '+').replaceAll('_', '/');
    const bytes = Uint8Array.from(atob(payload), (letter) => letter.charCodeAt(0));
    const claims = parseJson(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
    /** @param {string} name */
    const claim = (name) => {
      const value = member(claims, name);
      return value?.kind === 'string' ? value.value : value?.kind === 'number' ? value.text : '';
    };
    const [user, tenant] = [claim('sub'), claim('tenant_id')];
    if (!user || !tenant) return null;
    return { token, user, tenant, isAdmin: claim('role') === 'admin', expires: Number(claim('exp')) * 1000, isOurs };
  } catch {
    return null;
  }
}

/** @param {string} text */
function trimmed(text) {
  return text.trim().replace(/^"(.*)"$/, '$1').replace(/^Bearer\s+/i, '');
}

/**
 * @param {() => Storage} storage
 * @param {string} key
 */
function stored(storage, key) {
  try { return trimmed(storage().getItem(key) ?? ''); } catch { return ''; }
}

function find() {
  const given = read(stored(() => sessionStorage, STORED), true);
  const platform = PLATFORM_KEY ? read(stored(() => localStorage, PLATFORM_KEY), false) : null;
  /** @param {Session | null} one */
  const isGood = (one) => one !== null && one.token !== refused && one.expires > Date.now();
  return [given, platform].find(isGood) ?? null;
}

/** Takes a token out of the address, and removes it from there. */
export function takeFragment() {
  const token = new URLSearchParams(location.hash.slice(1)).get('token');
  if (token === null) return;
  history.replaceState(history.state, '', location.pathname + location.search);
  signIn(token);
}

/**
 * @param {string} text
 * @returns {boolean} Whether it is a token that names a person.
 */
export function signIn(text) {
  const token = trimmed(text);
  if (!read(token, true)) return false;
  refused = '';
  try { sessionStorage.setItem(STORED, token); } catch { /* Only until the page is left, then. */ }
  change(read(token, true));
  return true;
}

export function signOut() {
  try { sessionStorage.removeItem(STORED); } catch { /* There is nothing, then. */ }
  change(find());
}

/**
 * The service has refused this token.
 * @param {string} token
 */
export function refuse(token) {
  if (session?.token !== token) return;
  refused = token;
  change(find());
}

/** @param {Session | null} next */
function change(next) {
  if (next?.token === session?.token) return;
  session = next;
  for (const listener of listeners) listener();
}

export function current() {
  return session;
}

/** @param {() => void} listener */
export function onSessionChange(listener) {
  listeners.add(listener);
}

takeFragment();
session ??= find();
addEventListener('hashchange', takeFragment);
// The platform's frontend has signed in, out, or renewed its token.
addEventListener('storage', (event) => {
  if (event.key === PLATFORM_KEY || event.key === null) change(find());
});
