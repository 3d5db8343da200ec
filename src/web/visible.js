/**
 * Shows texts of strangers: characters that nobody sees, or that turn the direction of writing, appear as
 * escapes like \u202E. Emoji, tabs and line ends stay; but not in names, where spaces at the ends, or several in a
 * row, and line ends make another name of what looks the same.
 */
import { h } from './dom.js';
import { t } from './text.js';

// In emoji, joiners and variation selectors are in their place.
const EMOJI = /\p{Extended_Pictographic}(?:\uFE0F|\p{Emoji_Modifier})?(?:\u200D\p{Extended_Pictographic}(?:\uFE0F|\p{Emoji_Modifier})?)*|[0-9#*]\uFE0F\u20E3/u.source;
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800]/u.source;
const SPACE = / (?<=(?:^| ) )|(?! )\p{Zs}/u.source;
// What needs an escape is in the group; what stands before the group is taken as it is.
const PIECES = new RegExp(`${EMOJI}|\\r\\n|[\\n\\t]|(${HIDDEN})`, 'gu');
/** In a name. */
export const NAME = new RegExp(`${EMOJI}|(${SPACE}| (?= *$)|${HIDDEN})`, 'gu');
/** In a part of a name, after which it goes on. */
export const NAME_PART = new RegExp(`${EMOJI}|(${SPACE}|${HIDDEN})`, 'gu');

/**
 * @param {string} character
 */
function escaped(character) {
  const code = /** @type {number} */ (character.codePointAt(0)).toString(16).toUpperCase();
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, '0')}`;
}

/**
 * How many characters of a text need an escape.
 * @param {string} text
 * @param {RegExp} [pattern]
 */
export function hiddenIn(text, pattern = PIECES) {
  let hidden = 0;
  for (const found of text.matchAll(pattern)) if (found[1]) hidden += 1;
  return hidden;
}

/**
 * A text as nodes.
 * @param {string} text
 * @param {RegExp} [pattern]
 * @returns {(string | HTMLElement)[]}
 */
export function visible(text, pattern = PIECES) {
  /** @type {(string | HTMLElement)[]} */
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(pattern)) {
    if (!found[1]) continue;
    if (found.index > from) nodes.push(text.slice(from, found.index));
    nodes.push(h('span', { class: 'escape', title: t('hiddenCharacter') }, escaped(found[1])));
    from = found.index + found[1].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

/**
 * The same as one string, for attributes and announcements.
 * @param {string} text
 * @param {RegExp} [pattern]
 */
export function visibleText(text, pattern = PIECES) {
  return text.replace(pattern, (piece, hidden) => (hidden ? escaped(hidden) : piece));
}

/**
 * A short text of a stranger within a line.
 * @param {string | null | undefined} text
 * @param {string} [className]
 * @param {RegExp} [pattern]
 */
export function theirs(text, className = '', pattern = PIECES) {
  return h('bdi', { class: `theirs ${className}` }, visible(text ?? '', pattern));
}

/**
 * The warning that belongs beside a text with hidden characters, else nothing.
 * @param {number} hidden
 */
export function warning(hidden) {
  return hidden > 0 && h('span', { class: 'warning' }, t('hiddenCharacters', { n: hidden }));
}
