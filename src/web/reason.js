/**
 * Asks why something is rejected: quick picks, or the person's own words.
 */
import { fill, h } from './dom.js';
import { draft, keep } from './drafts.js';
import { t } from './text.js';

const PICKS = /** @type {const} */ (['pickNotNeeded', 'pickWrongTarget', 'pickWrongContent', 'pickRisky', 'pickLater']);
const MAX_REASON = 1000;

/**
 * @param {{ draftKey: string, question: string, confirm: string, send: (reason: string) => void, cancel: () => void }} options
 */
export function reasonForm({ draftKey, question, confirm: confirmText, send, cancel }) {
  const text = h('textarea', { rows: '2', maxlength: MAX_REASON, 'data-name': 'reason', 'aria-label': t('reason'), placeholder: t('reasonHint') });
  text.value = draft(draftKey);
  const missing = h('p', { class: 'problem', role: 'alert' });
  text.addEventListener('input', () => keep(draftKey, text.value));
  const sendReason = () => {
    const reason = text.value.trim();
    if (reason) {
      send(reason);
      return;
    }
    fill(missing, t('reasonMissing'));
    text.focus();
  };
  const picks = PICKS.map((pick, place) => h('button', {
    type: 'button', class: 'pick', 'data-name': pick,
    onclick: () => {
      text.value = t(pick);
      keep(draftKey, text.value);
      confirm.focus();
    },
  }, t(pick), key(String(place + 1))));
  const confirm = h('button', { type: 'submit', class: 'reject', 'data-name': 'confirm' }, confirmText);
  return h('form', {
    class: 'form',
    onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); sendReason(); },
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key === 'Escape') {
        event.stopPropagation();
        cancel();
      } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) sendReason();
      else if (event.target !== text && /^[1-5]$/.test(event.key)) picks[Number(event.key) - 1]?.click();
      else return;
      event.preventDefault();
    },
  },
  h('p', { class: 'question' }, question),
  h('div', { class: 'picks' }, picks), text, missing,
  h('div', { class: 'buttons' },
    h('button', { type: 'button', 'data-name': 'cancel', onclick: cancel }, t('cancel'), key('Esc')),
    confirm));
}

/** @param {string} name */
export function key(name) {
  return h('kbd', { 'aria-hidden': 'true' }, name);
}
