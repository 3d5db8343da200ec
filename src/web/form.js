/**
 * A form for a value that a JSON Schema (2020-12) describes. What it does not understand it shows as JSON. It
 * checks no more than that each field can be written as JSON: the service checks the value. What nobody touches
 * is sent as it was, digit by digit.
 */
import { fill, h } from './dom.js';
import { indented, member, parseJson } from './json.js';
import { t } from './text.js';
import { NAME, hiddenIn, theirs, visible, visibleText, warning } from './visible.js';

/**
 * @typedef {import('./json.js').Json} Json
 * @typedef {{ text: string, json: Json }} Written A value within the text in which it is written.
 * @typedef {'string' | 'number' | 'integer' | 'boolean' | 'choice' | 'object' | 'array' | 'json'} Kind
 * @typedef {{ kind: Kind, node: Json | undefined, isNullable: boolean, choices: string[] }} Description
 *
 * @typedef {object} Field
 * @property {HTMLElement} element
 * @property {(pointer: string) => string | null} read JSON; `null` when it cannot be read, and says why.
 * @property {(text: string) => void} say What is wrong with it; nothing takes that away.
 * @property {() => void} focus
 * @property {(raw: string) => void} [restore] Writes what was written before, even if it is no value.
 */

const LONG_TEXT = 60;
const MAX_DEPTH = 5;
const MAX_HOPS = 16;
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const INTEGER = /^-?(?:0|[1-9]\d*)$/;
/** An input changes these, or cannot hold them. */
const UNFIT = /[\r\0]|[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/;

/** Begins a draft in which fields are written that hold no value yet, as `12x` for a number: each is an object
 * whose only name is the first letters of the draft, which nobody can foresee. */
const UNFINISHED = '\0';
const MARK_LENGTH = 13;
/** Such a field that holds JSON, and not words. */
const AS_JSON = 'j';

let ids = 0;

export class SchemaForm {
  /**
   * @param {string} schema A JSON Schema.
   * @param {string | undefined} value JSON, or a draft of `draft`; nothing for a value that is still to be written.
   * @param {() => void} changed
   */
  constructor(schema, value, changed) {
    /** What marks a field without a value, while a draft is written or read; else nothing. */
    this.mark = value?.startsWith(UNFINISHED) ? value.slice(0, MARK_LENGTH) : '';
    value = value?.slice(this.mark.length);
    this.schema = schema;
    this.root = parseJson(schema);
    this.changed = changed;
    /** The fields of the last reading, by JSON Pointer.
     * @type {Map<string, Field>} */
    this.fields = new Map();
    this.isQuiet = false;
    const description = this.describe(this.root);
    /** Whether there is anything to show but JSON. */
    this.isUseful = description.kind !== 'json';
    const written = value === undefined ? undefined : { text: value, json: parseJson(value) };
    this.top = this.field(description, written, 0, t('value'));
    this.element = h('div', { class: 'schemaform' }, this.top.element);
    this.mark = '';
  }

  /** What is written by now, also where that is no value yet: for another form of this schema. */
  draft() {
    const text = this.read(true);
    if (text !== null) return text;
    this.mark = UNFINISHED + Array.from(crypto.getRandomValues(new Uint8Array(6)), (byte) => byte.toString(16).padStart(2, '0')).join('');
    const draft = this.mark + this.read(true);
    this.mark = '';
    return draft;
  }

  /**
   * What a field without a value held in the draft.
   * @param {Written | undefined} written
   */
  unfinished(written) {
    const json = written?.json;
    const [entry] = this.mark && json?.kind === 'object' ? json.entries : [];
    return entry?.[0].startsWith(this.mark) && entry[1].kind === 'string' ? { raw: entry[1].value, isJson: entry[0].endsWith(AS_JSON) } : undefined;
  }

  /**
   * @param {boolean} [isQuiet] Without saying what is wrong.
   * @returns {string | null}
   */
  read(isQuiet = false) {
    this.fields.clear();
    this.isQuiet = isQuiet;
    const text = this.top.read('');
    this.isQuiet = false;
    if (!isQuiet && text === null) this.focusProblem();
    return text;
  }

  /**
   * Shows what the service says of fields, and returns what belongs to none.
   * @param {Record<string, string>} problems By JSON Pointer.
   */
  show(problems) {
    /** @type {[string, string][]} */
    const rest = [];
    for (const [pointer, problem] of Object.entries(problems)) {
      let at = pointer;
      while (at && !this.fields.has(at)) at = at.slice(0, at.lastIndexOf('/'));
      const field = at || pointer === '' ? this.fields.get(at) : undefined;
      if (field && at !== '') field.say(at === pointer ? problem : `${pointer.slice(at.length)}: ${problem}`);
      else rest.push([pointer, problem]);
    }
    this.focusProblem();
    return rest;
  }

  focusProblem() {
    /** @type {HTMLElement | null} */ (this.element.querySelector('[aria-invalid=true]'))?.focus();
  }

  // ── What the schema says ──

  /**
   * @param {Json | undefined} node
   * @returns {Json | undefined} What its references lead to.
   */
  resolved(node) {
    for (let hops = 0; hops < MAX_HOPS; hops += 1) {
      const ref = member(node, '$ref');
      if (ref?.kind !== 'string' || !ref.value.startsWith('#')) return ref ? undefined : node;
      /** @type {Json | undefined} */
      let target = this.root;
      for (const part of ref.value.slice(1).split('/').slice(1)) {
        const name = decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~');
        target = target?.kind === 'array' ? target.items[Number(name)] : member(target, name);
      }
      node = target;
    }
    return undefined;
  }

  /** @param {Json} json */
  slice(json) {
    return this.schema.slice(json.start, json.end);
  }

  /**
   * @param {Json | undefined} given
   * @returns {Description}
   */
  describe(given) {
    let node = this.resolved(given);
    let isNullable = false;
    /** @type {Description} */
    const asJson = { kind: 'json', node, isNullable: false, choices: [] };
    const either = member(node, 'anyOf') ?? member(node, 'oneOf');
    if (either) {
      if (either.kind !== 'array' || either.items.length !== 2) return asJson;
      const rest = either.items.filter((one) => text(member(this.resolved(one), 'type')) !== 'null');
      if (rest.length !== 1) return asJson;
      node = this.resolved(rest[0]);
      isNullable = true;
    }
    const choices = member(node, 'enum');
    const only = member(node, 'const');
    if (choices?.kind === 'array' && choices.items.length > 0 && choices.items.every(isScalar)) {
      return { kind: 'choice', node, isNullable, choices: choices.items.map((one) => this.slice(one)) };
    }
    if (only && isScalar(only)) return { kind: 'choice', node, isNullable, choices: [this.slice(only)] };
    if (node?.kind !== 'object' || ['allOf', 'anyOf', 'oneOf', 'not', 'if', 'prefixItems'].some((name) => member(node, name) !== undefined && !member(node, 'properties'))) return asJson;
    const type = member(node, 'type');
    let types = type?.kind === 'array' ? type.items.map(text) : [text(type)];
    if (types.length === 2 && types.includes('null')) {
      types = types.filter((one) => one !== 'null');
      isNullable = true;
    }
    if (types.length !== 1) return asJson;
    let kind = /** @type {Kind} */ (types[0]);
    const properties = member(node, 'properties');
    if (kind === 'object' || (!kind && properties)) {
      if (properties?.kind !== 'object') return asJson;
      kind = 'object';
    } else if (kind === 'array') {
      const items = this.describe(member(node, 'items'));
      if (items.isNullable || ['object', 'array', 'json'].includes(items.kind)) return asJson;
    } else if (!['string', 'number', 'integer', 'boolean'].includes(kind)) return asJson;
    return { kind, node, isNullable, choices: [] };
  }

  // ── Fields ──

  /**
   * @param {Description} description
   * @param {Written | undefined} written
   * @param {number} depth
   * @param {string} label For who hears it.
   * @returns {Field}
   */
  field(description, written, depth, label) {
    const { kind, isNullable } = description;
    const unfinished = this.unfinished(written);
    if (unfinished) {
      const field = unfinished.isJson ? this.json(undefined, label) : this.field(description, undefined, depth, label);
      field.restore?.(unfinished.raw);
      return field;
    }
    const json = written?.json;
    const isNull = json?.kind === 'literal' && json.text === 'null';
    if (isNullable && kind !== 'json' && !(json && !isNull && !fits(description, json))) {
      return this.nullable(this.field({ ...description, isNullable: false }, isNull ? undefined : written, depth, label), isNull);
    }
    if (kind === 'json' || (json && !fits(description, json)) || depth > MAX_DEPTH) return this.json(written, label);
    if (kind === 'object') return this.object(description, written, depth);
    if (kind === 'array') return this.array(description, written, depth, label);
    if (kind === 'choice' || kind === 'boolean') return this.choice(description, written, label);
    return this.input(description, written, label);
  }

  /**
   * A field with one input.
   * @param {HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement} input
   * @param {Written | undefined} written
   * @param {() => string | { problem: string }} value
   * @param {string} [kind] `AS_JSON`, if it is written as JSON.
   * @returns {Field}
   */
  single(input, written, value, kind = '') {
    ids += 1;
    const problem = h('p', { class: 'problem', id: `problem${ids}` });
    const note = h('p', { class: 'hidden' });
    let isTouched = written === undefined;
    input.dataset.name = `field${ids}`;
    input.setAttribute('aria-describedby', problem.id);
    /** @param {string} words */
    const say = (words) => {
      fill(problem, words);
      if (words) input.setAttribute('aria-invalid', 'true');
      else input.removeAttribute('aria-invalid');
    };
    const look = () => {
      const hidden = input instanceof HTMLSelectElement ? 0 : hiddenIn(input.value);
      fill(note, hidden > 0 && [warning(hidden), ' ', h('span', { class: 'theirs' }, visible(input.value))]);
    };
    input.addEventListener('input', () => {
      isTouched = true;
      say('');
      look();
      this.changed();
    });
    look();
    /** @type {Field} */
    const field = {
      element: h('div', { class: 'single' }, input, note, problem),
      say,
      focus: () => input.focus(),
      restore: (raw) => {
        input.value = raw;
        isTouched = true;
        look();
      },
      read: (pointer) => {
        this.fields.set(pointer, field);
        if (!isTouched && written) return written.text.slice(written.json.start, written.json.end);
        const read = value();
        if (typeof read === 'string') return read;
        if (this.mark) return `{${JSON.stringify(this.mark + kind)}: ${JSON.stringify(input.value)}}`;
        if (!this.isQuiet) say(read.problem);
        return null;
      },
    };
    return field;
  }

  /**
   * @param {Description} description
   * @param {Written | undefined} written
   * @param {string} label
   */
  input({ kind, node }, written, label) {
    const json = written?.json ?? member(node, 'default');
    const value = json?.kind === 'string' ? json.value : json?.kind === 'number' ? json.text : '';
    if (kind !== 'string') {
      const input = h('input', { type: 'text', inputmode: kind === 'integer' ? 'numeric' : 'decimal', autocomplete: 'off', 'aria-label': label });
      input.value = value;
      return this.single(input, written, () => {
        const number = input.value.trim();
        if ((kind === 'integer' ? INTEGER : NUMBER).test(number)) return number;
        return { problem: t(number === '' ? 'valueMissing' : kind === 'integer' ? 'notAnInteger' : 'notANumber') };
      });
    }
    const isLong = value.length > LONG_TEXT || value.includes('\n') || Number(text(member(node, 'maxLength'))) > 200;
    const input = isLong
      ? h('textarea', { rows: String(Math.min(10, Math.max(3, value.split('\n').length + 1))), 'aria-label': label })
      : h('input', { type: 'text', autocomplete: 'off', 'aria-label': label });
    input.value = value;
    return this.single(input, written, () => JSON.stringify(input.value));
  }

  /**
   * @param {Description} description
   * @param {Written | undefined} written
   * @param {string} label
   */
  choice({ kind, choices, node }, written, label) {
    const all = kind === 'boolean' ? ['true', 'false'] : [...choices];
    const given = written ?? (member(node, 'default') ? { text: this.schema, json: /** @type {Json} */ (member(node, 'default')) } : undefined);
    const now = given && given.text.slice(given.json.start, given.json.end);
    let at = all.findIndex((one) => one === now || (now !== undefined && same(one, now)));
    if (at < 0 && written && now !== undefined) at = all.push(now) - 1;
    const input = h('select', { 'aria-label': label }, at < 0 && h('option', { value: '' }, t('choose')),
      all.map((one, place) => h('option', { value: String(place) }, kind === 'boolean' ? t(one === 'true' ? 'yes' : 'no') : words(one))));
    input.value = at < 0 ? '' : String(at);
    return this.single(input, written, () => all[Number(input.value || -1)] ?? { problem: t('valueMissing') });
  }

  /**
   * @param {Written | undefined} written
   * @param {string} label
   */
  json(written, label) {
    const value = written ? indented(written.text, written.json) : '';
    const input = h('textarea', { class: 'code', rows: String(Math.min(12, Math.max(2, value.split('\n').length))), spellcheck: 'false', 'aria-label': `${label} (JSON)` });
    input.value = value;
    return this.single(input, written, () => {
      try {
        parseJson(input.value);
        return input.value.trim();
      } catch {
        return { problem: t(input.value.trim() ? 'notJson' : 'valueMissing') };
      }
    }, AS_JSON);
  }

  /**
   * @param {Field} inner
   * @param {boolean} isNull
   * @returns {Field}
   */
  nullable(inner, isNull) {
    const box = h('input', { type: 'checkbox' });
    box.checked = isNull;
    inner.element.hidden = isNull;
    box.addEventListener('change', () => {
      inner.element.hidden = box.checked;
      this.changed();
    });
    return {
      ...inner,
      element: h('div', { class: 'single' }, inner.element, h('label', { class: 'null' }, box, t('noValue'))),
      restore: (raw) => {
        box.checked = inner.element.hidden = false;
        inner.restore?.(raw);
      },
      read: (pointer) => {
        const read = box.checked ? 'null' : inner.read(pointer);
        this.fields.set(pointer, inner);
        return read;
      },
    };
  }

  /**
   * @param {Description} description
   * @param {Written | undefined} written
   * @param {number} depth
   * @returns {Field}
   */
  object({ node }, written, depth) {
    const properties = member(node, 'properties');
    const required = member(node, 'required');
    const needed = new Set(required?.kind === 'array' ? required.items.map(text) : []);
    const known = new Map(properties?.kind === 'object' ? properties.entries : []);
    const values = new Map(written?.json.kind === 'object' ? written.json.entries : []);
    /** @type {Map<string, Field | null>} */
    const members = new Map();
    const element = h('div', { class: 'members' });
    for (const name of new Set([...values.keys(), ...known.keys()])) {
      const slot = h('div', { class: 'member' });
      /**
       * @param {Written | undefined} value
       * @param {boolean} isNew
       */
      const add = (value, isNew) => {
        const description = this.describe(known.get(name));
        const field = this.field(known.has(name) ? description : { ...description, kind: 'json' }, value, depth + 1, visibleText(name, NAME));
        members.set(name, field);
        const [title, hint] = ['title', 'description'].map((key) => text(member(this.resolved(known.get(name)), key)) || text(member(known.get(name), key)));
        fill(slot,
          h('div', { class: 'membername' },
            h('span', { class: 'name' }, theirs(name, '', NAME), warning(hiddenIn(name, NAME))), title && title !== name && h('span', { class: 'titled' }, theirs(title)),
            !needed.has(name) && h('button', { type: 'button', class: 'quiet small', onclick: () => { leave(); this.changed(); slot.querySelector('button')?.focus(); } }, t('leaveOut'), h('span', { class: 'unseen' }, ' ', visibleText(name, NAME)))),
          hint && h('p', { class: 'hint' }, theirs(hint)),
          h('div', { class: 'membervalue' }, field.element));
        if (isNew) {
          this.changed();
          field.focus();
        }
      };
      const leave = () => {
        members.set(name, null);
        fill(slot, h('button', { type: 'button', class: 'quiet small', onclick: () => add(undefined, true) }, t('addField'), ' ', theirs(name, '', NAME)));
      };
      const value = values.get(name);
      if (value && written) add({ text: written.text, json: value }, false);
      else if (needed.has(name)) add(undefined, false);
      else leave();
      element.append(slot);
    }
    const problem = h('p', { class: 'problem' });
    /** @type {Field} */
    const field = {
      element: h('div', null, element, problem),
      say: (words_) => { fill(problem, words_); },
      focus: () => { for (const one of members.values()) if (one) { one.focus(); return; } },
      read: (pointer) => {
        this.fields.set(pointer, field);
        fill(problem);
        const parts = [...members].filter(([, one]) => one).map(([name, one]) => {
          const read = one?.read(`${pointer}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`) ?? null;
          return read === null ? null : `${JSON.stringify(name)}: ${read}`;
        });
        return parts.includes(null) ? null : `{${parts.join(', ')}}`;
      },
    };
    return field;
  }

  /**
   * @param {Description} description
   * @param {Written | undefined} written
   * @param {number} depth
   * @param {string} label
   * @returns {Field}
   */
  array({ node }, written, depth, label) {
    const items = this.describe(member(node, 'items'));
    /** @type {Set<Field>} */
    const all = new Set();
    const rows = h('div', { class: 'items' });
    /**
     * @param {Written | undefined} value
     */
    const add = (value) => {
      const field = this.field(items, value, depth + 1, label);
      const row = h('div', { class: 'itemrow' }, field.element,
        h('button', { type: 'button', class: 'quiet small', onclick: () => { all.delete(field); row.remove(); this.changed(); more.focus(); } }, t('removeItem')));
      all.add(field);
      rows.append(row);
      return field;
    };
    const more = h('button', { type: 'button', class: 'quiet small', onclick: () => { const field = add(undefined); this.changed(); field.focus(); } }, t('addItem'));
    if (written?.json.kind === 'array') for (const json of written.json.items) add({ text: written.text, json });
    const problem = h('p', { class: 'problem' });
    /** @type {Field} */
    const field = {
      element: h('div', null, rows, more, problem),
      say: (words_) => { fill(problem, words_); },
      focus: () => more.focus(),
      read: (pointer) => {
        this.fields.set(pointer, field);
        fill(problem);
        const read = [...all].map((one, place) => one.read(`${pointer}/${place}`));
        return read.includes(null) ? null : `[${read.join(', ')}]`;
      },
    };
    return field;
  }
}

/**
 * A draft as the text of JSON, in which a field without a value is the words that were written.
 * @param {string} draft
 */
export function draftAsJson(draft) {
  if (!draft.startsWith(UNFINISHED)) return draft;
  const mark = JSON.stringify(draft.slice(0, MARK_LENGTH)).slice(1, -1).replaceAll('\\', '\\\\');
  return draft.slice(MARK_LENGTH).replace(new RegExp(`\\{"${mark}${AS_JSON}?": ("(?:[^"\\\\]|\\\\.)*")\\}`, 'g'), '$1');
}

/** @param {Json | undefined} json */
function text(json) {
  return json?.kind === 'string' ? json.value : json?.kind === 'number' ? json.text : '';
}

/** @param {Json} json */
function isScalar(json) {
  return json.kind === 'string' || json.kind === 'number' || json.kind === 'literal';
}

/**
 * Whether a field of this kind can hold what is written, exactly.
 * @param {Description} description
 * @param {Json} json
 */
function fits({ kind }, json) {
  switch (kind) {
    case 'string': return json.kind === 'string' && !UNFIT.test(json.value);
    case 'number': return json.kind === 'number';
    // 5.0 is an integer, too: it stays as it is until it is touched.
    case 'integer': return json.kind === 'number';
    case 'boolean': return json.kind === 'literal' && (json.text === 'true' || json.text === 'false');
    case 'choice': return isScalar(json);
    case 'object': return json.kind === 'object' && new Set(json.entries.map(([name]) => name)).size === json.entries.length;
    case 'array': return json.kind === 'array';
    default: return true;
  }
}

/**
 * A choice in words.
 * @param {string} json
 */
function words(json) {
  const value = parseJson(json);
  return value.kind === 'string' ? theirs(value.value).textContent : json;
}

/**
 * @param {string} one
 * @param {string} other
 */
function same(one, other) {
  const [a, b] = [parseJson(one), parseJson(other)];
  return a.kind === 'string' && b.kind === 'string' && a.value === b.value;
}
