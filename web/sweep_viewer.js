/** The viewer in RLG Grid: the cells of a sweep in large, and what one does with them. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hasScale, toLoadImage, useScale } from "./cell_actions.js";
import { CellViewer } from "./cell_viewer.js";
import { tell } from "./messages.js";
import { addPart, after, hideHostPreview, html, outputOf, pictureUrl } from "./node_parts.js";
import { leadsTo } from "./server_graph.js";

const EVENT = "rlg_cells"; // as in nodes/live_cells.py
const EMPTY_HEIGHT = 64;
const MIN_HEIGHT = 360;

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
  const viewer = new SweepViewer(node);
  addPart(node, "rlg_viewer", viewer.element, () => (viewer.empty ? EMPTY_HEIGHT : MIN_HEIGHT));
  hideHostPreview(node);
  const show = () => {
    const output = outputOf(app, node);
    if (output) viewer.show(output);
    node.graph.setDirtyCanvas(true, true); // it may have grown
  };
  const listen = ({ detail }) => {
    if (!leadsTo(String(detail.node), node, "labels")) return;
    viewer.showDone(detail);
    node.graph.setDirtyCanvas(true, true);
  };
  after(node, "onAdded", () => {
    shows.set(node, show);
    api.addEventListener(EVENT, listen);
  });
  after(node, "onExecuted", show);
  after(node, "onRemoved", () => {
    shows.delete(node);
    api.removeEventListener(EVENT, listen);
  });
}

class SweepViewer {
  empty = true;
  #node;
  #cells = new CellViewer(({ url, label, preview }) => {
    this.#use.disabled = !hasScale(label);
    this.#load.disabled = !url || Boolean(preview);
  });
  #compare = button("Compare", "Wipe between two cells", () => this.#setComparing(!this.#cells.comparing));
  #use = button("Use this scale", "Write scale and switch point into the sampler or its schedule", () => this.#useScale());
  #load = button("To Load Image", "Go on with this picture", () => this.#toLoadImage());
  #full = button("Full screen", "", () => this.#toggleFullScreen());
  #preloaded = [];
  /** @type {import("./cell_viewer.js").Cell[]} of the run that goes on */
  #done = [];

  constructor(node) {
    this.#node = node;
    this.element = html(
      "div",
      { class: "rlg-part rlg-viewer", role: "group", "aria-label": "Cells of the sweep" },
      html("p", {}, "Run, then choose a cell with the arrow keys, a slider or a click."),
    );
  }

  /** @param {{images?: object[], labels?: string[]}} output what the node has put out for the page */
  show({ images = [], labels = [] }) {
    if (!images.length) return;
    this.#showCells(images.map((image, i) => ({ url: pictureUrl(api, image), label: labels[i] ?? "" })));
  }

  /**
   * Cells that are sampled, and not decoded yet; the exact pictures take their place.
   *
   * @param {{begins: boolean, labels: string[], pictures: Record<number, string>}} done
   */
  showDone({ begins, labels, pictures }) {
    // A node that was made anew meanwhile, by Undo or on another tab, has not heard the first one.
    if (begins || this.#done.length !== labels.length)
      this.#done = labels.map((label) => ({ url: "", label, preview: true }));
    for (const [number, url] of Object.entries(pictures)) this.#done[number] = { ...this.#done[number], url };
    this.#showCells(this.#done);
  }

  #showCells(cells) {
    // Held, so that flipping takes them from memory.
    this.#preloaded = cells.map(({ url }) => Object.assign(new Image(), { src: url }));
    this.#cells.cells = cells;
    if (!this.empty) return;
    this.empty = false;
    const buttons = html("div", { class: "rlg-buttons" }, this.#compare, this.#use, this.#load, this.#full);
    this.element.replaceChildren(this.#cells.element, buttons);
    this.#setComparing(false);
  }

  #setComparing(on) {
    this.#cells.comparing = on;
    this.#compare.setAttribute("aria-pressed", String(on));
  }

  #useScale() {
    try {
      const target = useScale(this.#node, this.#cells.chosen.label);
      tell("success", `${this.#cells.chosen.label}: set in ${target.title} (#${target.id}).`);
    } catch (error) {
      tell("warn", error.message);
    }
  }

  async #toLoadImage() {
    try {
      const selected = Object.values(app.canvas.selected_nodes ?? {});
      const target = await toLoadImage(api, this.#node, this.#cells.chosen, selected);
      tell("success", `${this.#cells.chosen.label}: the picture is in ${target.title} (#${target.id}).`);
    } catch (error) {
      tell("warn", error.message);
    }
  }

  #toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen();
  }
}

function button(text, title, onClick) {
  const element = html("button", { type: "button", title }, text);
  element.addEventListener("click", onClick);
  return element;
}
