/**
 * Sentences in the person's language, and times in their zone.
 */
import { en } from './locales/en.js';
import { ko } from './locales/ko.js';
import { h } from './dom.js';

/** @typedef {keyof typeof en} Key */
/** @typedef {'en' | 'ko'} Language */

const STORED = 'aura-hitl-language';

/** @returns {Language} */
function preferred() {
  const stored = read(STORED);
  if (stored === 'en' || stored === 'ko') return stored;
  const known = navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag === 'ko' || tag === 'en');
  return known === 'ko' ? 'ko' : 'en';
}

/** @param {string} name */
function read(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

/** @type {Language} */
export let language = preferred();

/** @param {Language} chosen */
export function choose(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  try { localStorage.setItem(STORED, chosen); } catch { /* Only this visit, then. */ }
}

document.documentElement.lang = language;

/**
 * @param {Key} key
 * @param {Record<string, string | number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const texts = language === 'ko' ? ko : en;
  const entry = texts[key];
  const one = `${key}One`;
  const text = values.n === 1 && one in texts ? texts[/** @type {Key} */ (one)] : entry;
  return text.replace(/\{(\w+)\}/g, (_all, name) => {
    const value = values[name];
    return typeof value === 'number' ? value.toLocaleString(language) : String(value ?? '');
  });
}

/**
 * A sentence with elements in it.
 * @param {Key} key
 * @param {Record<string, string | HTMLElement>} parts
 */
export function sentence(key, parts) {
  const text = t(key, Object.fromEntries(Object.keys(parts).map((name) => [name, `{${name}}`])));
  return text.split(/\{(\w+)\}/).map((piece, place) => (place % 2 ? parts[piece] : piece));
}

/**
 * The text of a word from the service, or the word itself.
 * @param {string} prefix
 * @param {string | null | undefined} word
 */
export function named(prefix, word) {
  const key = `${prefix}_${word}`;
  return key in en ? t(/** @type {Key} */ (key)) : String(word ?? '');
}

/**
 * A time of the service: UTC without a zone suffix.
 * @param {string} text
 */
export function instant(text) {
  return Date.parse(/(?:Z|[+-]\d\d:\d\d)$/.test(text) ? text : `${text}Z`);
}

/** How far the service's clock is ahead of this one, in milliseconds. */
let ahead = 0;

/**
 * Compares the clocks, by the time stamp of an answer. It has whole seconds.
 * @param {string} timestamp
 */
export function compareClocks(timestamp) {
  const difference = instant(timestamp) + 500 - Date.now();
  ahead = Math.abs(difference) < 2000 ? 0 : difference;
}

/** Now, by the service's clock. */
export function now() {
  return Date.now() + ahead;
}

/**
 * A point in time: local, with UTC on hover.
 * @param {string | null | undefined} text
 */
export function time(text) {
  if (!text) return '';
  const at = new Date(instant(text));
  const isToday = new Date(now()).toDateString() === at.toDateString();
  const local = at.toLocaleString(language, isToday
    ? { hour: '2-digit', minute: '2-digit', second: '2-digit' }
    : { year: 'numeric', month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' });
  const utc = `${at.toISOString().slice(0, 19).replace('T', ' ')} UTC`;
  return h('time', { datetime: at.toISOString(), title: utc }, local);
}

/**
 * How long, in at most two units.
 * @param {number} milliseconds
 */
export function duration(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return t('daysHours', { d: days, h: hours });
  if (hours) return t('hoursMinutes', { h: hours, m: minutes });
  return `${minutes}:${String(seconds % 60).padStart(2, '0')}`;
}

/**
 * How long ago, roughly.
 * @param {string} text
 */
export function age(text) {
  const minutes = Math.floor((now() - instant(text)) / 60000);
  if (minutes < 1) return t('justNow');
  const format = new Intl.RelativeTimeFormat(language, { style: 'short' });
  if (minutes < 60) return format.format(-minutes, 'minute');
  if (minutes < 60 * 24) return format.format(-Math.floor(minutes / 60), 'hour');
  return format.format(-Math.floor(minutes / 1440), 'day');
}
