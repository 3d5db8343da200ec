/**
 * Reads JSON without losing anything: numbers keep their digits, objects their order and their repeated names.
 * What is nested deeper than MAX_DEPTH stays the text that it is.
 */

/**
 * @typedef {{ kind: 'object', entries: [string, Json][], start: number, end: number }} JsonObject
 * @typedef {{ kind: 'array', items: Json[], start: number, end: number }} JsonArray
 * @typedef {{ kind: 'string', value: string, start: number, end: number }} JsonString
 * @typedef {{ kind: 'number' | 'literal' | 'raw', text: string, start: number, end: number }} JsonText
 * @typedef {JsonObject | JsonArray | JsonString | JsonText} Json
 */

const MAX_DEPTH = 32;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
// Python's three, too: requests in Redis may hold them.
const LITERAL = /true|false|null|NaN|-?Infinity/y;

/**
 * @param {string} text
 * @returns {Json}
 */
export function parseJson(text) {
  let at = 0;

  /** @param {RegExp} pattern */
  const take = (pattern) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (!found) return undefined;
    at = pattern.lastIndex;
    return found[0];
  };
  const fail = () => new SyntaxError(`not JSON at ${at}`);
  /** @param {string} letter */
  const expect = (letter) => {
    take(SPACE);
    if (text[at] !== letter) throw fail();
    at += 1;
  };
  /** @param {string} letter */
  const has = (letter) => {
    take(SPACE);
    if (text[at] !== letter) return false;
    at += 1;
    return true;
  };
  const string = () => {
    take(SPACE);
    const start = at;
    // A regular expression over a megabyte may exhaust its stack: find the end by hand.
    if (text[at] !== '"') throw fail();
    for (at += 1; text[at] !== '"'; at += 1) {
      if (at >= text.length) throw fail();
      if (text[at] === '\\') at += 1;
    }
    at += 1;
    return { value: /** @type {string} */ (JSON.parse(text.slice(start, at))), start };
  };
  /** Passes over a value, however deep it is. */
  const skip = () => {
    let depth = 0;
    do {
      take(SPACE);
      const letter = text[at];
      if (letter === undefined) throw fail();
      if (letter === '"') string();
      else if (letter === '{' || letter === '[') { depth += 1; at += 1; }
      else if (letter === '}' || letter === ']') { depth -= 1; at += 1; }
      else if (letter === ',' || letter === ':') at += 1;
      else if (take(NUMBER) === undefined && take(LITERAL) === undefined) throw fail();
    } while (depth > 0);
  };

  /**
   * @param {number} depth
   * @returns {Json}
   */
  const value = (depth) => {
    take(SPACE);
    const start = at;
    const letter = text[at];
    if (letter === '"') {
      const read = string();
      return { kind: 'string', value: read.value, start, end: at };
    }
    if ((letter === '{' || letter === '[') && depth >= MAX_DEPTH) {
      skip();
      return { kind: 'raw', text: text.slice(start, at), start, end: at };
    }
    if (letter === '{') {
      at += 1;
      /** @type {[string, Json][]} */
      const entries = [];
      if (!has('}')) {
        do {
          const name = string().value;
          expect(':');
          entries.push([name, value(depth + 1)]);
        } while (has(','));
        expect('}');
      }
      return { kind: 'object', entries, start, end: at };
    }
    if (letter === '[') {
      at += 1;
      /** @type {Json[]} */
      const items = [];
      if (!has(']')) {
        do items.push(value(depth + 1)); while (has(','));
        expect(']');
      }
      return { kind: 'array', items, start, end: at };
    }
    const number = take(NUMBER);
    if (number) return { kind: 'number', text: number, start, end: at };
    const literal = take(LITERAL);
    if (literal) return { kind: 'literal', text: literal, start, end: at };
    throw fail();
  };

  const read = value(0);
  take(SPACE);
  if (at !== text.length) throw fail();
  return read;
}

/**
 * The member of an object; of repeated names the last, as JSON.parse has it.
 * @param {Json | undefined} json
 * @param {string} name
 * @returns {Json | undefined}
 */
export function member(json, name) {
  if (json?.kind !== 'object') return undefined;
  return json.entries.findLast(([other]) => other === name)?.[1];
}

/**
 * A value of this text as JavaScript has it. Large numbers lose digits: not for what an agent wrote.
 * @param {string} text
 * @param {Json} json
 */
export function plain(text, json) {
  return JSON.parse(text.slice(json.start, json.end));
}

/**
 * The same JSON with one value a line, every token as it was written.
 * @param {string} text
 * @param {Json} json
 * @returns {string}
 */
export function indented(text, json) {
  /** @type {string[]} */
  const parts = [];
  /**
   * @param {Json} node
   * @param {string} margin
   */
  const write = (node, margin) => {
    if (node.kind === 'object' && node.entries.length) {
      parts.push('{');
      node.entries.forEach(([name, child], place) => {
        parts.push(`${place ? ',' : ''}\n${margin}  ${JSON.stringify(name)}: `);
        write(child, `${margin}  `);
      });
      parts.push(`\n${margin}}`);
    } else if (node.kind === 'array' && node.items.length) {
      parts.push('[');
      node.items.forEach((child, place) => {
        parts.push(`${place ? ',' : ''}\n${margin}  `);
        write(child, `${margin}  `);
      });
      parts.push(`\n${margin}]`);
    } else {
      parts.push(text.slice(node.start, node.end));
    }
  };
  write(json, '');
  return parts.join('');
}
