/** How our parts sit in a node: their elements, their style, the node's callbacks. */

import { app } from "../../scripts/app.js";

document.head.append(html("link", { rel: "stylesheet", href: new URL("./parts.css", import.meta.url).href }));

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
  const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: minHeight, selectOn: [] };
  const widget = node.addDOMWidget(name, name, element, options);
  widget.serialize = false; // the option is for the prompt, this is for the workflow
  // Else the browser keeps a workflow that is dropped here from the page, which would load it.
  element.addEventListener("dragover", refuse);
  element.addEventListener("wheel", zoomThePage);
  // The properties panel sets a width that is the panel's, and the canvas would take it for the node's.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {} });
}

function refuse(event) {
  event.preventDefault();
}

/** On the canvas a part would keep the wheel to itself, and the browser would zoom the page. */
function zoomThePage(event) {
  const scrolled = event.target.closest("[data-capture-wheel]");
  if (scrolled?.contains(document.activeElement) || document.fullscreenElement) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

/**
 * Make what was just changed a step of Undo: by itself the page looks after a click, before we have done anything.
 */
export function noteChange() {
  app.canvas.emitBeforeChange();
  app.canvas.emitAfterChange();
}

/** The longest that a page waits for its next frame: one that is hidden draws none, but it has timers. */
const LONGEST_FRAME = 100;

/**
 * What may be asked for many times in a row, and is done once, soon after.
 *
 * @param {() => void} act
 * @returns {() => void}
 */
export function oncePerFrame(act) {
  let waiting, frame, timer;
  const now = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    waiting = false;
    act();
  };
  return () => {
    if (waiting) return;
    waiting = true;
    frame = requestAnimationFrame(now);
    timer = setTimeout(now, LONGEST_FRAME);
  };
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
 * What a node has put out for the page in its last run: also for one that was made anew since, by Undo or another tab.
 *
 * @param {object} node
 * @returns {Record<string, any[]> | undefined}
 */
export function outputOf({ id, graph }) {
  // A node that has just been moved into a subgraph is in none for a moment.
  return graph && app.nodeOutputs[graph.isRootGraph ? id : `${graph.id}:${id}`];
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
