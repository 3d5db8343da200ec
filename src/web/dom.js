/**
 * Makes elements. Every text becomes a text node: nothing here, and nothing on this page, parses markup.
 */

/**
 * @typedef {Node | string | number | null | undefined | false} One
 * @typedef {One | One[] | (One | One[])[] | (One | One[] | (One | One[])[])[]} Child
 */

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, any> | null} [properties] `class`, `onclick` and other listeners, attributes;
 *   `true` is an attribute without a value; `null`, `undefined` and `false` leave it out.
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  append(element, children);
  return element;
}

/**
 * @param {Node} parent
 * @param {Child[]} children
 */
export function append(parent, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(parent, child);
    else parent.appendChild(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/**
 * @template {Element} Parent
 * @param {Parent} parent
 * @param {...Child} children
 * @returns {Parent}
 */
export function fill(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
  return parent;
}

/** @param {EventTarget | null} target */
export function isTyping(target) {
  return target instanceof HTMLElement
    && target.matches('textarea, select, [contenteditable], input:not([type=checkbox], [type=radio], [type=button])');
}
