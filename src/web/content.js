/**
 * Shows what an agent wrote, all of it: as labelled fields, numbers and order as written. What is long or deep
 * is folded, and its size is said. Everything is a part that must have been on screen.
 */
import { h } from './dom.js';
import { t } from './text.js';
import { NAME, NAME_PART, hiddenIn, theirs, visible, warning } from './visible.js';

/**
 * @typedef {import('./json.js').Json} Json
 * @typedef {typeof import('./seen.js').NO_LOCK} Seen
 */

const PIECE = 200;
const PIECE_LINES = 6;
const LONG_TEXT = 1000;
const LONG_LINES = 15;
const FIRST_FIELDS = 40;
const MORE_FIELDS = 1000;
const GROUP = 50;
const OPEN_DEPTH = 2;
/** What is deeper is not shifted to the right any more. */
const SHIFT_DEPTH = 5;
const OPEN_LEAVES = 8;

/**
 * Cuts a text where neither a character nor, if possible, a word ends up in two pieces.
 * @param {string} text
 */
function pieces(text) {
  /** @type {string[]} */
  const all = [];
  for (let from = 0; from < text.length;) {
    let to = Math.min(text.length, from + PIECE);
    let line = from;
    for (let lines = 0; lines < PIECE_LINES; lines += 1) {
      line = text.indexOf('\n', line) + 1;
      if (line === 0 || line >= to) break;
      if (lines === PIECE_LINES - 1) to = line;
    }
    if (to < text.length) {
      const space = Math.max(text.lastIndexOf(' ', to), text.lastIndexOf('\n', to)) + 1;
      if (space > from + PIECE / 2) to = space;
      // Not within a pair of surrogates, nor before what belongs to the character before.
      for (let more = 0; more < 20 && to < text.length && /^[\uDC00-\uDFFF\u200D\uFE0F\p{M}]/u.test(text.slice(to, to + 1)); more += 1) to += 1;
      if (text[to - 1] === '\u200D') to += 1;
      if (/[\uD800-\uDBFF]/.test(text[to - 1] ?? '') && /[\uDC00-\uDFFF]/.test(text[to] ?? '')) to += 1;
    }
    all.push(text.slice(from, to));
    from = to;
  }
  return all;
}

/**
 * A button that shows more when it is pressed; what it shows takes its place.
 * @param {string} label
 * @param {Seen} seen
 * @param {() => (Node | string)[]} more
 */
function fold(label, seen, more) {
  const button = h('button', { type: 'button', class: 'fold' }, label);
  const open = () => {
    if (!button.isConnected) return;
    const nodes = more();
    const hadFocus = document.activeElement === button;
    button.replaceWith(...nodes);
    seen.unfold(button);
    if (hadFocus) /** @type {HTMLElement} */ (seen.screen).focus({ preventScroll: true });
  };
  button.addEventListener('click', open);
  seen.addFold(button, open);
  return button;
}

/**
 * Groups of elements, of which the browser draws only those on screen.
 * @param {HTMLElement[]} elements
 * @param {'div' | 'span'} [tag]
 * @returns {HTMLElement[]}
 */
function grouped(elements, tag = 'div') {
  if (elements.length <= GROUP) return elements;
  /** @type {HTMLElement[]} */
  const groups = [];
  for (let from = 0; from < elements.length; from += GROUP) {
    groups.push(h(tag, { class: 'group' }, elements.slice(from, from + GROUP)));
  }
  return groups;
}

/**
 * A text in parts.
 * @param {string} text
 * @param {Seen} seen
 * @param {string} [className]
 * @param {boolean} [isName]
 * @returns {HTMLElement}
 */
export function longText(text, seen, className = '', isName = false) {
  if (text === '') {
    const empty = h('span', { class: 'nothing' }, t('emptyText'));
    seen.add(empty);
    return h('div', { class: `text ${className}` }, empty);
  }
  const all = pieces(text);
  const last = all.length - 1;
  /** @param {number} from @param {number} to */
  const parts = (from, to) => grouped(all.slice(from, to).map((piece, place) => {
    const part = h('span', null, isName ? visible(piece, from + place === last ? NAME : NAME_PART) : visible(piece));
    seen.add(part);
    return part;
  }));
  let first = Math.min(text.length, LONG_TEXT);
  let line = -1;
  for (let lines = 0; lines < LONG_LINES; lines += 1) {
    line = text.indexOf('\n', line + 1);
    if (line < 0) break;
    if (lines === LONG_LINES - 1) first = Math.min(first, line + 1);
  }
  let [shown, length] = [0, 0];
  for (; shown < all.length && length < first; shown += 1) length += all[shown]?.length ?? 0;
  // A fold that hides less than it says is no help.
  if (all.length - shown <= 1) {
    shown = all.length;
    length = text.length;
  }
  return h(
    'div', { class: `text ${className}` },
    warning(hiddenIn(text, isName ? NAME : undefined)),
    h('div', { class: 'theirs', dir: 'auto' },
      parts(0, shown),
      shown < all.length && fold(t('moreCharacters', { n: text.length - length }), seen, () => parts(shown, all.length))),
  );
}

/** @param {Json} json */
const isLeaf = (json) => !((json.kind === 'object' && json.entries.length > 0) || (json.kind === 'array' && json.items.length > 0));

/**
 * @param {Json} json
 * @param {number} most
 * @returns {number} At most `most + 1`.
 */
function leaves(json, most) {
  const children = json.kind === 'object' ? json.entries.map(([, child]) => child) : json.kind === 'array' ? json.items : [];
  let count = children.length ? 0 : 1;
  for (const child of children) {
    count += leaves(child, most - count);
    if (count > most) break;
  }
  return count;
}

/**
 * @param {string} source
 * @param {Json} json
 * @param {number} depth
 * @param {Seen} seen
 * @returns {Node}
 */
function value(source, json, depth, seen) {
  switch (json.kind) {
    case 'string':
      return longText(json.value, seen);
    case 'number':
    case 'literal':
    case 'raw':
      return longText(json.text, seen, json.kind);
    case 'object':
    case 'array': {
      const count = json.kind === 'object' ? json.entries.length : json.items.length;
      if (!count) {
        const none = h('span', { class: 'nothing' }, json.kind === 'object' ? t('noFields') : t('noItems'));
        seen.add(none);
        return none;
      }
      // Many plain values are one text: a row for each would be too much for browser and person.
      if (json.kind === 'array' && count > FIRST_FIELDS && json.items.every((item) => isLeaf(item) && item.kind !== 'string')) {
        return longText(source.slice(json.start, json.end), seen, 'raw');
      }
      const label = json.kind === 'object' ? t('fields', { n: count }) : t('items', { n: count });
      const isOpen = depth < OPEN_DEPTH || (depth < 6 && leaves(json, OPEN_LEAVES) <= OPEN_LEAVES);
      return isOpen ? fields(source, json, depth, seen) : fold(label, seen, () => [fields(source, json, depth, seen)]);
    }
  }
}

/**
 * @param {string} source
 * @param {Json} json An object or an array.
 * @param {number} depth
 * @param {Seen} seen
 * @param {(name: string) => boolean} [only] Which fields; all without it.
 * @returns {HTMLElement}
 */
export function fields(source, json, depth, seen, only = () => true) {
  /** @type {[string | null, Json][]} */
  const entries = json.kind === 'object'
    ? json.entries.filter(([name]) => only(name))
    : json.kind === 'array' ? json.items.map((item) => [null, item]) : [];
  /**
   * @param {number} from
   * @param {number} to
   * @returns {HTMLElement[]}
   */
  const rows = (from, to) => grouped(entries.slice(from, to).map(([name, child], place) => h(
    'div', { class: isLeaf(child) ? 'field' : 'field nested' },
    name === null
      ? h('span', { class: 'name index' }, `${from + place + 1}`)
      : h('span', { class: 'name' }, name === '' ? h('span', { class: 'nothing' }, t('emptyText'))
        // A long name is content like any other; a short one is seen with its value.
        : name.length > PIECE / 2 ? longText(name, seen, '', true) : [theirs(name, '', NAME), warning(hiddenIn(name, NAME))]),
    h('div', { class: 'value' }, value(source, child, depth + 1, seen)),
  )));
  /** @param {number} from */
  const more = (from) => {
    if (from >= entries.length) return [];
    const to = Math.min(entries.length, from + MORE_FIELDS);
    const left = entries.length - from;
    const label = to === entries.length
      ? json.kind === 'object' ? t('moreFields', { n: left }) : t('moreItems', { n: left })
      : t('moreOf', { n: to - from, left });
    /** @type {Node[]} */
    const nodes = [fold(label, seen, () => [...rows(from, to), ...more(to)])];
    return nodes;
  };
  // Twelve more are not worth a fold.
  const first = entries.length <= FIRST_FIELDS + 12 ? entries.length : FIRST_FIELDS;
  return h('div', { class: depth > SHIFT_DEPTH ? 'fields deep' : 'fields' }, rows(0, first), more(first));
}
