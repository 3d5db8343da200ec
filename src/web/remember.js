/**
 * Asks for which later requests an approval is to stand, as far as the rules let it, and says in one sentence
 * what will be approved without asking. Approving itself remembers nothing.
 */
import { fill, h } from './dom.js';
import { key } from './reason.js';
import { sentence, t } from './text.js';
import { theirs, visibleText } from './visible.js';

/**
 * @typedef {{ scope: string, arguments: string, seconds: number }} Wish As the service takes it.
 */

const TIMES = /** @type {const} */ ([['rememberMinutes', 900], ['rememberHour', 3600], ['rememberHours', 28800]]);

/**
 * @param {{ shown: import('./request.js').Shown, send: (wish: Wish) => void, cancel: () => void }} options
 */
export function rememberForm({ shown, send, cancel }) {
  const user = shown.userId ?? '';
  const scope = select('scope', [['session', t('rememberSession')], ['requester', t('rememberRequester', { user: visibleText(user) })]]);
  /** @type {[string, string][]} */
  const contents = [['exact', t('rememberExact')]];
  if (shown.remember === 'any') contents.push(['any', t('rememberAny')]);
  const content = select('arguments', contents);
  const time = select('seconds', TIMES.map(([text, seconds]) => [String(seconds), t(text)]));
  const effect = h('p', { class: 'effect', role: 'status' });
  const told = () => {
    const { text } = /** @type {HTMLOptionElement} */ (time.selectedOptions[0]);
    effect.classList.toggle('any', content.value === 'any');
    fill(effect, sentence(/** @type {import('./text.js').Key} */ (`remember_${scope.value}_${content.value}`), { time: text, user: theirs(user), action: theirs(shown.actionType) }));
  };
  told();
  return h('form', {
    class: 'form wide',
    onchange: told,
    onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      send({ scope: scope.value, arguments: content.value, seconds: Number(time.value) });
    },
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== 'Escape') return;
      event.preventDefault();
      event.stopPropagation();
      cancel();
    },
  },
  h('p', { class: 'question' }, t('rememberWhat')),
  h('div', { class: 'choices' },
    h('label', null, h('span', null, t('rememberWhose')), scope),
    h('label', null, h('span', null, t('content')), content),
    h('label', null, h('span', null, t('rememberTime')), time)),
  contents.length === 1 && h('p', { class: 'hint' }, t('rememberOnlyExact')),
  effect,
  h('p', { class: 'hint' }, t('rememberEnds')),
  h('div', { class: 'buttons' },
    h('button', { type: 'button', 'data-name': 'cancel', onclick: cancel }, t('cancel'), key('Esc')),
    h('button', { type: 'submit', class: 'approve', 'data-name': 'confirm' }, t('approveRemembered'))));
}

/**
 * @param {string} name
 * @param {[string, string][]} choices The first one is chosen.
 */
function select(name, choices) {
  return h('select', { 'data-name': name }, choices.map(([value, text]) => h('option', { value }, text)));
}
