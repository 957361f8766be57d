/** One cell of a sweep at a time, as large as there is room; flipped through with slider, arrow keys or mouse. */

import { html } from "./node_parts.js";

/**
 * @typedef {object} Cell
 * @property {string} url
 * @property {string} label
 */

export class CellPane {
  /** @type {Cell[]} */
  #cells = [];
  #image = html("img", { draggable: "false" });
  #caption = html("figcaption");
  #slider = html("input", { type: "range", min: 0, step: 1 });
  #index = 0;

  /** @param {string} name of the slider, for screen readers */
  constructor(name) {
    this.#slider.setAttribute("aria-label", name);
    const picture = html("div", { class: "rlg-picture" }, this.#image);
    this.element = html("figure", { class: "rlg-pane" }, picture, this.#caption, this.#slider);
    this.#slider.addEventListener("input", () => (this.index = this.#slider.valueAsNumber));
    this.#slider.addEventListener("keydown", (event) => event.stopPropagation()); // no shortcuts of the page
    picture.addEventListener("pointermove", (event) => {
      if (event.buttons) return; // dragging something
      const { left, width } = picture.getBoundingClientRect();
      this.index = Math.floor(((event.clientX - left) / width) * this.#cells.length);
    });
    this.#image.addEventListener("error", () => {
      this.#caption.textContent = "This picture is gone from the server: run again.";
    });
  }

  /** @param {Cell[]} cells */
  set cells(cells) {
    this.#cells = cells;
    this.#slider.setAttribute("max", String(cells.length - 1));
    this.index = this.#index;
  }

  get index() {
    return this.#index;
  }

  set index(index) {
    this.#index = Math.min(Math.max(index, 0), this.#cells.length - 1);
    const { url, label } = this.#cells[this.#index];
    if (this.#image.getAttribute("src") !== url) this.#image.setAttribute("src", url);
    this.#image.setAttribute("alt", label);
    this.#caption.textContent = label;
    this.#slider.value = String(this.#index);
    this.#slider.setAttribute("aria-valuetext", `${label} (${this.#index + 1} of ${this.#cells.length})`);
  }
}
