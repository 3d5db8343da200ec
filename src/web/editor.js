/**
 * Where a person writes a value: in a form, where the agent's schema allows one, or as JSON. Where no JSON is
 * wanted, as plain words.
 */
import { fill, h } from './dom.js';
import { draft, keep } from './drafts.js';
import { SchemaForm, draftAsJson } from './form.js';
import { indented, parseJson } from './json.js';
import { t } from './text.js';

/**
 * @typedef {object} Options
 * @property {string | undefined} schema
 * @property {string | undefined} initial JSON.
 * @property {string} draftKey
 * @property {string} name
 * @property {string} label
 * @property {boolean} isPlain Words, not JSON.
 * @property {() => void} changed
 */

export class Editor {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    /** What is done before the service's reasons are shown. */
    this.onRefused = () => {};
    this.problem = h('p', { class: 'problem', role: 'alert' });
    this.text = h('textarea', { rows: options.isPlain ? '4' : '8', class: options.isPlain ? '' : 'code', spellcheck: options.isPlain ? null : 'false', 'data-name': options.name, 'aria-label': options.label });
    this.text.addEventListener('input', () => this.changed());
    /** @type {SchemaForm | null} */
    this.form = null;
    this.place = h('div', { class: 'editor' });
    this.other = h('button', { type: 'button', class: 'quiet small', 'data-name': 'other', onclick: () => this.turn() });
    const written = draft(options.draftKey) || options.initial;
    this.text.value = draftAsJson(written ?? '');
    if (!options.isPlain) this.makeForm(written);
    this.render();
    this.element = h('div', { class: 'editorwhole' }, this.place, options.schema !== undefined && this.other, this.problem);
  }

  /** @param {string | undefined} value */
  makeForm(value) {
    const { schema } = this.options;
    if (schema === undefined) return false;
    try {
      const form = new SchemaForm(schema, value?.trim() ? value : undefined, () => this.changed());
      if (!form.isUseful) return false;
      this.form = form;
      return true;
    } catch {
      // The draft is not JSON: it is shown as it was written.
      return false;
    }
  }

  render() {
    fill(this.place, this.form ? this.form.element : this.text);
    fill(this.other, t(this.form ? 'asJson' : 'asForm'));
    this.other.hidden = !this.form && !this.canTurn();
  }

  canTurn() {
    const { schema } = this.options;
    if (schema === undefined) return false;
    try { return new SchemaForm(schema, undefined, () => {}).isUseful; } catch { return false; }
  }

  /** From the form to JSON, or back. */
  turn() {
    fill(this.problem);
    if (this.form) {
      const read = draftAsJson(this.form.draft());
      this.text.value = indented(read, parseJson(read));
      this.form = null;
    } else if (!this.makeForm(this.text.value)) {
      fill(this.problem, t('notJson'));
      this.text.focus();
      return;
    }
    this.render();
    this.options.changed();
    this.focus();
  }

  changed() {
    keep(this.options.draftKey, this.form ? this.form.draft() : this.text.value);
    fill(this.problem);
    this.options.changed();
  }

  focus() {
    /** @type {HTMLElement | null} */ (this.place.querySelector('input, textarea, select, button'))?.focus();
  }

  /** JSON, or `null` when there is none yet; then it says why. */
  read() {
    fill(this.problem);
    if (this.form) {
      const read = this.form.read();
      if (read === null) fill(this.problem, t('formProblems'));
      return read;
    }
    const { value } = this.text;
    if (this.options.isPlain) {
      if (value.trim()) return JSON.stringify(value);
      fill(this.problem, t('responseMissing'));
    } else {
      try {
        parseJson(value);
        return value.trim();
      } catch {
        fill(this.problem, t('notJson'));
      }
    }
    this.text.focus();
    return null;
  }

  /**
   * What the service has against it.
   * @param {string} message
   * @param {unknown} problems By field and JSON Pointer, as `/arguments/amount`.
   * @param {string} field
   */
  refuse(message, problems, field) {
    this.onRefused();
    const all = Object.entries(problems && typeof problems === 'object' ? problems : {});
    const ours = Object.fromEntries(all.filter(([name]) => name.startsWith(`/${field}`)).map(([name, problem]) => [name.slice(field.length + 1), String(problem)]));
    const rest = this.form ? this.form.show(ours) : Object.entries(ours);
    const others = all.filter(([name]) => !name.startsWith(`/${field}`)).map(([name, problem]) => `${name}: ${problem}`);
    if (!all.length) fill(this.problem, message);
    else fill(this.problem, t('formRefused'), [...rest.map(([pointer, problem]) => `${pointer || t('value')}: ${problem}`), ...others].map((line) => h('span', { class: 'line' }, line)));
  }
}

/**
 * Where each line of indented JSON stands: the names of what it is in, and its places in lists, counted from 1. Its own
 * name stands in it.
 * @param {string[]} lines
 */
function placesOf(lines) {
  /** @type {{ isList: boolean, count: number, place: (string | number)[], inside: (string | number)[] }[]} */
  const open = [];
  return lines.map((line) => {
    const closed = /^ *[}\]]/.test(line) && open.pop();
    if (closed) return closed.place.join(' › ');
    const outer = open.at(-1) ?? { isList: false, count: 0, inside: [] };
    outer.count += 1;
    const place = outer.isList ? [...outer.inside, outer.count] : outer.inside;
    const name = /^ *("(?:[^"\\]|\\.)*"): /.exec(line)?.[1];
    const inside = name ? [...place, /** @type {string} */ (JSON.parse(name))] : place;
    if (/[{[]$/.test(line)) open.push({ isList: line.endsWith('['), count: 0, place, inside });
    return place.join(' › ');
  });
}

/**
 * What an edit takes away and adds, line by line, and where each line stands.
 * @param {string} before
 * @param {string} after
 * @returns {{ sign: '-' | '+', line: string, place: string }[]}
 */
export function differences(before, after) {
  const [old, now] = [before.split('\n'), after.split('\n')];
  const [oldPlaces, nowPlaces] = [placesOf(old), placesOf(now)];
  /** @param {number} number */
  const gone = (number) => ({ sign: /** @type {const} */ ('-'), line: old[number] ?? '', place: oldPlaces[number] ?? '' });
  /** @param {number} number */
  const added = (number) => ({ sign: /** @type {const} */ ('+'), line: now[number] ?? '', place: nowPlaces[number] ?? '' });
  let start = 0;
  while (start < old.length && start < now.length && old[start] === now[start]) start += 1;
  let end = 0;
  while (end < old.length - start && end < now.length - start && old.at(-1 - end) === now.at(-1 - end)) end += 1;
  const [left, right] = [old.slice(start, old.length - end), now.slice(start, now.length - end)];
  if (left.length * right.length > 1e6) {
    return [...left.map((_line, number) => gone(start + number)), ...right.map((_line, number) => added(start + number))];
  }
  const found = [];
  // The longest common subsequence from each place on.
  const width = right.length + 1;
  const longest = new Uint32Array((left.length + 1) * width);
  /** @param {number} i @param {number} j */
  const at = (i, j) => longest[i * width + j] ?? 0;
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      longest[i * width + j] = left[i] === right[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  let [i, j] = [0, 0];
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) { i += 1; j += 1; }
    else if (i < left.length && (j >= right.length || at(i + 1, j) >= at(i, j + 1))) { found.push(gone(start + i)); i += 1; }
    else { found.push(added(start + j)); j += 1; }
  }
  return found;
}
