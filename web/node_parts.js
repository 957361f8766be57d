/** How our parts sit in a node: their elements, their style, the node's callbacks. */

/**
 * An element with attributes and children; text goes in as text.
 *
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} [attributes] true = present, false = absent
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * The same of SVG.
 *
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes))
    if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  element.append(...children);
  return element;
}

/**
 * Do something after a callback of one node, such as `onExecuted`; what was there goes on working.
 *
 * @param {object} owner node or widget
 * @param {string} callback
 * @param {(...args: any[]) => void} then
 */
export function after(owner, callback, then) {
  const before = owner[callback];
  owner[callback] = function (...args) {
    const result = before?.apply(this, args);
    then(...args);
    return result;
  };
}

/**
 * Put an element below the widgets of a node. It holds no value: neither the saved workflow nor the prompt knows of it.
 *
 * @param {object} node
 * @param {string} name
 * @param {HTMLElement} element
 * @param {() => number} minHeight in pixels at zoom 1
 */
export function addPart(node, name, element, minHeight) {
  loadStyle();
  const options = { serialize: false, hideOnZoom: false, getMinHeight: minHeight };
  const widget = node.addDOMWidget(name, name, element, options);
  widget.serialize = false; // the option is for the prompt, this is for the workflow
}

/**
 * Leave the pictures of a node's output to the part that shows them.
 *
 * @param {object} node
 */
export function hideHostPreview(node) {
  node.hideOutputImages = true; // Nodes 2.0
  node.onDrawBackground = () => {}; // the canvas renderer draws them there
}

/**
 * Address of a picture that a node has put out.
 *
 * @param {object} api
 * @param {{filename: string, subfolder: string, type: string}} image
 */
export function pictureUrl(api, { filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

function loadStyle() {
  const href = new URL("./parts.css", import.meta.url).href;
  if (![...document.styleSheets].some((sheet) => sheet.href === href))
    document.head.append(html("link", { rel: "stylesheet", href }));
}
