/**
 * Shows texts of strangers: characters that nobody sees, or that turn the direction of writing, appear as
 * escapes like \u202E. Emoji, tabs and line ends stay.
 */
import { h } from './dom.js';
import { t } from './text.js';

// The first alternatives are emoji, in which joiners and variation selectors are in their place.
const PIECES = /\p{Extended_Pictographic}(?:\uFE0F|\p{Emoji_Modifier})?(?:\u200D\p{Extended_Pictographic}(?:\uFE0F|\p{Emoji_Modifier})?)*|[0-9#*]\uFE0F\u20E3|\r\n|[\n\t]|([\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}\u2800])/gu;

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
 */
export function hiddenIn(text) {
  let hidden = 0;
  for (const found of text.matchAll(PIECES)) if (found[1]) hidden += 1;
  return hidden;
}

/**
 * A text as nodes.
 * @param {string} text
 * @returns {(string | HTMLElement)[]}
 */
export function visible(text) {
  /** @type {(string | HTMLElement)[]} */
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(PIECES)) {
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
 */
export function visibleText(text) {
  return text.replace(PIECES, (piece, hidden) => (hidden ? escaped(hidden) : piece));
}

/**
 * A short text of a stranger within a line.
 * @param {string | null | undefined} text
 * @param {string} [className]
 */
export function theirs(text, className = '') {
  return h('bdi', { class: `theirs ${className}` }, visible(text ?? ''));
}

/**
 * The warning that belongs beside a text with hidden characters, else nothing.
 * @param {number} hidden
 */
export function warning(hidden) {
  return hidden > 0 && h('span', { class: 'warning' }, t('hiddenCharacters', { n: hidden }));
}
