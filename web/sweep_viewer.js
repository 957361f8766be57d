/** The viewer in RLG Grid: the cells of a sweep one by one, or two side by side. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CellPane } from "./cell_pane.js";
import { addPart, after, hideHostPreview, html, outputOf, pictureUrl } from "./node_parts.js";

const EMPTY_HEIGHT = 64;
const MIN_HEIGHT = 280;

/** Of each node that has one: how to show its last output. @type {Map<object, () => void>} */
const shows = new Map();

app.registerExtension({
  name: "RLG.SweepViewer",
  nodeCreated(node) {
    if (node.comfyClass === "RLGGrid") addViewer(node);
  },
  afterConfigureGraph() {
    // The host brings back the outputs of a tab once this hook has returned.
    setTimeout(() => shows.forEach((show) => show()));
  },
});

function addViewer(node) {
  const viewer = new SweepViewer();
  addPart(node, "rlg_viewer", viewer.element, () => (viewer.empty ? EMPTY_HEIGHT : MIN_HEIGHT));
  hideHostPreview(node);
  const show = () => {
    const output = outputOf(app, node);
    if (output) viewer.show(output);
    node.graph.setDirtyCanvas(true, true); // it may have grown
  };
  after(node, "onAdded", () => shows.set(node, show));
  after(node, "onExecuted", show);
  after(node, "onRemoved", () => shows.delete(node));
}

class SweepViewer {
  empty = true;
  #left = new CellPane("Cell");
  #right = new CellPane("Cell to compare with");
  #compare = html("button", { type: "button", "aria-pressed": "false" }, "Compare");
  #full = html("button", { type: "button" }, "Full screen");
  #preloaded = [];

  constructor() {
    this.element = html(
      "div",
      { class: "rlg-part rlg-viewer", role: "group", "aria-label": "Cells of the sweep" },
      html("p", {}, "Run, then flip through the cells with the slider or the mouse."),
    );
    this.#compare.addEventListener("click", () => this.#compareTwo(this.#right.element.hidden));
    this.#full.addEventListener("click", () => this.#toggleFullScreen());
  }

  /** @param {{images?: object[], labels?: string[]}} output what the node has put out for the page */
  show({ images = [], labels = [] }) {
    if (!images.length) return;
    const cells = images.map((image, i) => ({ url: pictureUrl(api, image), label: labels[i] ?? "" }));
    // Held, so that flipping takes them from memory.
    this.#preloaded = cells.map(({ url }) => Object.assign(new Image(), { src: url }));
    this.#left.cells = this.#right.cells = cells;
    if (this.empty) {
      this.#right.index = cells.length - 1;
      this.empty = false;
      this.element.replaceChildren(
        html("div", { class: "rlg-panes" }, this.#left.element, this.#right.element),
        html("div", { class: "rlg-buttons" }, this.#compare, this.#full),
      );
      this.#compareTwo(false);
    }
  }

  #compareTwo(on) {
    this.#compare.setAttribute("aria-pressed", String(on));
    this.#right.element.hidden = !on;
  }

  #toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen();
  }
}
