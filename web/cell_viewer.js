/** A large view of the cells of a sweep: chosen by keys, sliders or a click; two of them compared by wiping. */

import { CellTable } from "./cell_table.js";
import { html } from "./node_parts.js";

/**
 * @typedef {object} Cell
 * @property {string} url empty where the cell is not there yet
 * @property {boolean} [preview] not the exact picture
 * @property {string} label
 */

const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class CellViewer {
  /** @type {Cell[]} */
  #cells = [];
  #table = new CellTable([]);
  #row = 0;
  #column = 0;
  /** What stands for each cell in the map. @type {HTMLButtonElement[]} */
  #buttons = [];
  /** What the user chose, as rows and columns are named, since other runs have other seeds in their labels. */
  #wanted = { row: "", column: "" };
  #onChoice;

  #image = html("img", { draggable: "false" });
  #under = html("img", { draggable: "false", class: "rlg-under" });
  #divider = html("div", { class: "rlg-divider" });
  #picture = html("div", { class: "rlg-picture", role: "group", tabindex: "0" },
    this.#under, this.#image, this.#divider);
  #caption = html("figcaption", { "aria-live": "polite" });
  #columnSlider = html("input", { type: "range", min: 0, step: 1 });
  #rowSlider = html("input", { type: "range", min: 0, step: 1 });
  #map = html("div", { class: "rlg-map", "data-capture-wheel": "true" }); // its wheel scrolls it, once it has the focus
  #other = html("select", { "aria-label": "Cell to compare with" });
  #wipe = html("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Wipe" });
  #comparison = html("div", { class: "rlg-comparison" }, this.#other, this.#wipe);

  /** @param {(cell: Cell) => void} onChoice called when another cell is shown */
  constructor(onChoice) {
    this.#onChoice = onChoice;
    this.element = html("figure", { class: "rlg-cells" },
      this.#picture, this.#caption, this.#comparison, this.#columnSlider, this.#rowSlider, this.#map);
    this.#columnSlider.addEventListener("input", () => this.#choose(this.#row, this.#columnSlider.valueAsNumber));
    this.#rowSlider.addEventListener("input", () => this.#choose(this.#rowSlider.valueAsNumber, this.#column));
    this.#other.addEventListener("change", () => this.#show());
    this.#wipe.addEventListener("input", () => this.#moveDivider(this.#wipe.valueAsNumber));
    for (const part of [this.#picture, this.#map]) part.addEventListener("keydown", (event) => this.#onKey(event));
    this.#picture.addEventListener("pointerdown", (event) => this.#onPress(event));
    for (const control of [this.#columnSlider, this.#rowSlider, this.#wipe, this.#other, this.#map])
      control.addEventListener("keydown", (event) => {
        // Not what the page does with a key alone, such as Delete.
        if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
      });
    for (const image of [this.#image, this.#under])
      image.addEventListener("error", () => this.say("This picture is gone from the server: run again."));
    this.comparing = false;
  }

  /** @param {Cell[]} cells */
  set cells(cells) {
    const before = this.#cells;
    this.#cells = cells;
    const anew = cells.length !== before.length || cells.some(({ label }, index) => label !== before[index].label);
    if (anew) this.#layOut(cells.length === before.length ? this.#other.selectedIndex : 0);
    this.#buttons.forEach((button, index) => setContent(button, cells[index].url));
    const wanted = this.#table.at(
      this.#table.rows.indexOf(this.#wanted.row), this.#table.columns.indexOf(this.#wanted.column));
    const first = Math.max(cells.findIndex(({ url }) => url), 0);
    this.#go(...this.#table.placeOf(cells[wanted]?.url ? wanted : first));
    if (anew) this.#scrollToChosen();
  }

  /**
   * Make a place for each label.
   *
   * @param {number} other number of the cell to compare with
   */
  #layOut(other) {
    const inMap = this.#map.contains(document.activeElement);
    const labels = this.#cells.map(({ label }) => label);
    this.#table = new CellTable(labels);
    setSlider(this.#columnSlider, this.#table.columnName || "cell", this.#table.columns.length);
    setSlider(this.#rowSlider, this.#table.rowName || "row", this.#table.rows.length);
    this.#buttons = labels.map((label, index) => this.#button(label, index));
    // A single row goes on in the next line where it is longer than the node is wide; a table is scrolled to.
    const columns = this.#isTable ? this.#table.columns.length : "auto-fit";
    this.#map.style.gridTemplateColumns = `repeat(${columns}, minmax(var(--rlg-cell), 1fr))`;
    this.#map.replaceChildren(...this.#inOrder());
    this.#map.hidden = labels.length < 2;
    if (inMap) this.#picture.focus({ preventScroll: true }); // where the arrow keys go on
    this.#other.replaceChildren(...labels.map((label, index) => html("option", { value: index }, label)));
    this.#other.selectedIndex = other;
  }

  /** @param {string} sentence below the picture, until another cell is shown */
  say(sentence) {
    this.#caption.textContent = sentence;
  }

  get chosen() {
    return this.#cells[this.#table.at(this.#row, this.#column)];
  }

  get comparing() {
    return !this.#comparison.hidden;
  }

  set comparing(on) {
    this.#comparison.hidden = this.#divider.hidden = this.#under.hidden = !on;
    this.#picture.style.touchAction = on ? "none" : ""; // a finger that wipes does not move the page
    this.#moveDivider(this.#wipe.valueAsNumber);
    if (this.#cells.length) this.#show();
  }

  /** What the user does. Where a cell is missing, the nearest one in the new column or row is chosen. */
  #choose(row, column) {
    const place = this.#table.nearest(row, column, column !== this.#column);
    if (place) this.#go(...place);
    this.#scrollToChosen();
    this.#wanted = { row: this.#table.rows[this.#row], column: this.#table.columns[this.#column] };
  }

  /** To the place of a cell. */
  #go(row, column) {
    [this.#row, this.#column] = [row, column];
    this.#show();
  }

  /** The map alone: what is around it stays where it is. */
  #scrollToChosen() {
    const button = this.#buttons[this.#table.at(this.#row, this.#column)];
    const { offsetTop: top, offsetLeft: left, offsetHeight: height, offsetWidth: width } = button;
    const map = this.#map;
    map.scrollTop = Math.min(Math.max(map.scrollTop, top + height - map.clientHeight), top);
    map.scrollLeft = Math.min(Math.max(map.scrollLeft, left + width - map.clientWidth), left);
  }

  #show() {
    const index = this.#table.at(this.#row, this.#column);
    const { url, label, preview } = this.#cells[index];
    setPicture(this.#image, url, label);
    const other = this.#cells[this.#other.value] ?? this.#cells[0];
    if (this.comparing) setPicture(this.#under, other.url, other.label);
    const caption = this.comparing ? `${other.label} | ${label}` : label;
    this.#caption.textContent = preview ? `${caption} (preview)` : caption;
    const text = `${label} (${index + 1} of ${this.#cells.length})`;
    this.#picture.setAttribute("aria-label", text);
    for (const [slider, value] of [[this.#columnSlider, this.#column], [this.#rowSlider, this.#row]]) {
      slider.value = String(value);
      slider.setAttribute("aria-valuetext", text);
    }
    this.#buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(number === index)));
    this.#onChoice(this.#cells[index]);
  }

  /** To click on. */
  #button(label, index) {
    const [row, column] = this.#table.placeOf(index);
    const button = html("button", { type: "button", value: index, title: label, "aria-label": label });
    if (this.#isTable) button.style.gridArea = `${row + 1} / ${column + 1}`;
    button.addEventListener("click", () => this.#choose(row, column));
    return button;
  }

  get #isTable() {
    return this.#table.rows.length > 1;
  }

  /** The buttons row by row, as Tab goes through them. */
  #inOrder() {
    const places = new Map(this.#buttons.map((button, index) => [button, this.#table.placeOf(index)]));
    const [row, column] = [0, 1].map((part) => (button) => places.get(button)[part]);
    return [...this.#buttons].sort((one, other) => row(one) - row(other) || column(one) - column(other));
  }

  #onKey(event) {
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation(); // the page would move the view
    this.#choose(this.#row + step[0], this.#column + step[1]);
  }

  /** Dragging wipes; a plain move of the mouse changes nothing. */
  #onPress(event) {
    if (!this.comparing || event.button !== 0) return;
    const follow = ({ clientX }) => {
      const { left, width } = this.#picture.getBoundingClientRect();
      this.#moveDivider(Math.min(Math.max(((clientX - left) / width) * 100, 0), 100));
    };
    follow(event);
    this.#picture.setPointerCapture(event.pointerId);
    this.#picture.addEventListener("pointermove", follow);
    const end = () => this.#picture.removeEventListener("pointermove", follow);
    this.#picture.addEventListener("lostpointercapture", end, { once: true });
  }

  /** @param {number} percent of the width that shows the cell to compare with */
  #moveDivider(percent) {
    this.#wipe.value = String(Math.round(percent));
    this.#divider.style.left = `${percent}%`;
    this.#under.style.clipPath = `inset(0 ${100 - percent}% 0 0)`;
    this.#image.style.clipPath = this.comparing ? `inset(0 0 0 ${percent}%)` : "";
  }
}

function setSlider(slider, name, count) {
  slider.setAttribute("aria-label", name);
  slider.setAttribute("title", name);
  slider.setAttribute("max", String(count - 1));
  slider.hidden = count < 2;
}

function setPicture(image, url, label) {
  image.setAttribute("alt", label);
  if (!url) image.removeAttribute("src");
  else if (image.getAttribute("src") !== url) image.setAttribute("src", url);
}

/** A small picture of a cell, or that it is not there yet; what was there stays until the next one is loaded. */
function setContent(button, url) {
  const image = button.querySelector("img");
  if (image && url) setPicture(image, url, "");
  else if (url) button.replaceChildren(html("img", { src: url, alt: "", draggable: "false", loading: "lazy" }));
  else if (image || !button.firstChild) button.replaceChildren("…");
}
