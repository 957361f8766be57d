/** The viewer in RLG Grid: the cells of a sweep in large, and what one does with them. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { hasScale, toLoadImage, useScale } from "./cell_actions.js";
import { CellViewer } from "./cell_viewer.js";
import { tell } from "./messages.js";
import { addPart, after, hideHostPreview, html, noteChange, oncePerFrame, outputOf, pictureUrl } from "./node_parts.js";
import { everyNode, isOfOpenWorkflow, leadsTo } from "./server_graph.js";

const EVENT = "rlg_cells"; // as in nodes/live_cells.py
const EMPTY_HEIGHT = 64;
const MIN_HEIGHT = 360;

/** Of each node that has one. @type {WeakMap<object, SweepViewer>} */
const viewers = new WeakMap();

app.registerExtension({
  name: "RLG.SweepViewer",
  nodeCreated(node) {
    if (node.comfyClass === "RLGGrid") addViewer(node);
  },
  // Of another tab, of Undo, or of a run in the history.
  onNodeOutputsUpdated() {
    everyNode().forEach(showOutput);
  },
  setup() {
    // One for all: the host does not say of every node that it is gone.
    api.addEventListener(EVENT, ({ detail }) => {
      if (!isOfOpenWorkflow(detail)) return;
      for (const node of everyNode()) {
        const viewer = viewers.get(node);
        if (viewer && leadsTo(String(detail.node), node, "labels")) viewer.showDone(detail);
      }
    });
  },
});

function addViewer(node) {
  const viewer = new SweepViewer(node);
  viewers.set(node, viewer);
  addPart(node, "rlg_viewer", viewer.element, () => (viewer.empty ? EMPTY_HEIGHT : MIN_HEIGHT));
  hideHostPreview(node);
  after(node, "onExecuted", () => showOutput(node));
}

/** What a node has put out in its last run, in its viewer if it has one. */
function showOutput(node) {
  const output = viewers.has(node) && outputOf(node);
  if (output) viewers.get(node).show(output);
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
  /** Pictures by their addresses: held, so that flipping takes them from memory. @type {Map<string, HTMLImageElement>} */
  #held = new Map();
  /** @type {import("./cell_viewer.js").Cell[]} as they were last told, and soon are on the page */
  #latest = [];
  /** @type {import("./cell_viewer.js").Cell[]} of the run that goes on */
  #done = [];
  // Cells that the server knows come all at once, each in a message of its own.
  #drawSoon = oncePerFrame(() => this.#draw());

  constructor(node) {
    this.#node = node;
    this.#full.hidden = !document.fullscreenEnabled;
    this.element = html(
      "div",
      { class: "rlg-part rlg-viewer", role: "group", "aria-label": "Cells of the sweep" },
      html("p", {}, "Run, then choose a cell with the arrow keys, a slider or a click."),
    );
  }

  /** @param {{images?: object[], labels?: string[]}} output what the node has put out for the page */
  show({ images = [], labels = [] }) {
    if (!images.length) return;
    this.#latest = images.map((image, i) => ({ url: pictureUrl(api, image), label: labels[i] ?? "" }));
    this.#draw();
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
    this.#latest = this.#done;
    this.#drawSoon();
  }

  #draw() {
    const addresses = this.#latest.map(({ url }) => url).filter(Boolean);
    this.#held = new Map(addresses.map((url) => [url, this.#held.get(url) ?? loaded(url)]));
    this.#cells.cells = [...this.#latest];
    if (this.empty) this.#fill();
    this.#node.graph?.setDirtyCanvas(true, true); // it may have grown
  }

  #fill() {
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
    this.#doing(() => useScale(this.#node, this.#cells.chosen.label), "set in");
  }

  #toLoadImage() {
    const selected = Object.values(app.canvas.selected_nodes ?? {});
    this.#doing(() => toLoadImage(api, this.#node, this.#cells.chosen, selected), "the picture is in");
  }

  /** Change the workflow by a cell, and say what came of it. */
  async #doing(action, done) {
    const { label } = this.#cells.chosen;
    try {
      const target = await action();
      this.#say("success", `${label}: ${done} ${target.title} (#${target.id}).`);
    } catch (error) {
      this.#say("warn", error.message);
    } finally {
      noteChange();
    }
  }

  /** Nothing of the page is seen beside what fills the screen. */
  #say(severity, sentence) {
    if (document.fullscreenElement) this.#cells.say(sentence);
    else tell(severity, sentence);
  }

  #toggleFullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen();
  }
}

function loaded(url) {
  return Object.assign(new Image(), { src: url });
}

function button(text, title, onClick) {
  const element = html("button", { type: "button", title }, text);
  element.addEventListener("click", onClick);
  return element;
}
