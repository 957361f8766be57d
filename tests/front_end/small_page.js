/** As much of a page as the viewer in RLG Grid asks for, without a browser: what it makes can be counted. */

export const made = {};
export const [frames, timers] = [[], []];

class Element {
  attributes = new Map();
  children = [];
  style = {};
  hidden = false;
  selectedIndex = -1;

  constructor(tag) {
    this.tag = tag;
    made[tag] = (made[tag] ?? 0) + 1;
  }
  setAttribute(name, value) {
    this.attributes.set(name, String(value));
  }
  getAttribute(name) {
    return this.attributes.get(name) ?? null;
  }
  removeAttribute(name) {
    this.attributes.delete(name);
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  all(tag) {
    const inside = this.children.filter((child) => child instanceof Element).flatMap((child) => child.all(tag));
    return this.tag === tag ? [this, ...inside] : inside;
  }
  querySelectorAll(tag) {
    return this.all(tag);
  }
  querySelector(tag) {
    return this.all(tag)[0] ?? null;
  }
  contains(element) {
    return element === this || this.children.some((child) => child instanceof Element && child.contains(element));
  }
  get value() {
    const holder = this.tag === "select" ? this.children[this.selectedIndex] : this;
    return holder?.getAttribute("value") ?? "";
  }
  set value(value) {
    this.setAttribute("value", value);
  }
  get valueAsNumber() {
    return Number(this.value);
  }
  get firstChild() {
    return this.children[0] ?? null;
  }
  addEventListener() {}
  scrollIntoView() {}
}

globalThis.document = { head: new Element("head"), createElement: (tag) => new Element(tag) };
globalThis.Image = class extends Element {
  constructor() {
    super("Image");
  }
};
globalThis.requestAnimationFrame = (act) => frames.push(act);
globalThis.cancelAnimationFrame = (number) => delete frames[number - 1];
globalThis.setTimeout = (act) => timers.push(act);
globalThis.clearTimeout = (number) => delete timers[number - 1];

/** Do what waits for a frame, or for a timer. */
export function pass(queue) {
  queue.splice(0).forEach((act) => act?.());
}
