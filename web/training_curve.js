/** The course of a training run in its node: reward, distance to the base and clipping, while it goes on and after. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPart, after, html, oncePerFrame, outputOf, svg } from "./node_parts.js";
import { everyNode, isOfOpenWorkflow, nodeAt } from "./server_graph.js";

const NODE = "RLGTrainLora";
const EVENT = "rlg_training"; // as in nodes/live_training.py
const MIN_HEIGHT = 190;
const MARGIN = { left: 8, right: 8, top: 20, gap: 22 };

/** @typedef {{number: number, reward: number, spread: number, kl: number, clipped: number}} Entry */

const LINES = [
  { name: "reward", share: 0.5, of: (entry) => entry.reward },
  { name: "KL to base", share: 0.25, of: (entry) => entry.kl },
  { name: "clipped share", share: 0.25, of: (entry) => entry.clipped },
];

/** How to have that of each node that has one drawn. @type {WeakMap<object, () => void>} */
const drawings = new WeakMap();

/**
 * What the server said last of a run that has put out nothing yet, by where it is said: nodes are made anew when another
 * workflow was looked at, or by Undo, while the run goes on.
 *
 * @type {Map<string, {node: string, workflow: string | null, prompt: string, status: string, entries: Entry[]}>}
 */
const told = new Map();

app.registerExtension({
  name: "RLG.TrainingCurve",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      told.set(`${detail.workflow} ${detail.node}`, detail);
      if (isOfOpenWorkflow(detail)) drawings.get(nodeAt(detail.node))?.();
    });
    api.addEventListener("executed", ({ detail }) =>
      forget(({ node, prompt }) => node === detail.node && prompt === detail.prompt_id),
    );
  },
  onNodeOutputsUpdated: drawAll,
  afterConfigureGraph: drawAll,
  nodeCreated(node) {
    if (node.comfyClass === NODE) addCourse(node);
  },
});

function drawAll() {
  everyNode().forEach((node) => drawings.get(node)?.());
}

function forget(done) {
  for (const [place, course] of told) if (done(course)) told.delete(place);
}

function addCourse(node) {
  const element = html("div", { class: "rlg-part rlg-curve rlg-training", role: "status" });
  const isOwn = (course) => isOfOpenWorkflow(course) && nodeAt(course.node) === node;
  const draw = () => {
    const course = [...told.values()].find(isOwn) ?? outputOf(node)?.[EVENT]?.[0];
    const { clientWidth: width, clientHeight: height } = element;
    if (width && height) element.replaceChildren(...content(course, width, height));
  };
  // A page that slept gets at once what it was told meanwhile, each time the whole course.
  drawings.set(node, oncePerFrame(draw));
  addPart(node, "rlg_training", element, () => MIN_HEIGHT);
  new ResizeObserver(draw).observe(element);
  after(node, "onExecuted", () => {
    forget(isOwn);
    draw();
  });
}

/**
 * @param {{status: string, entries: Entry[]} | undefined} course
 * @param {number} width in pixels
 * @param {number} height
 * @returns {Node[]}
 */
function content(course, width, height) {
  if (!course) return [html("p", {}, "Run to train: reward, distance to the base and clipping appear here.")];
  const { status, entries } = course;
  if (!entries.length) return [html("p", {}, status)];
  return [drawing(entries, width, height), html("div", { class: "rlg-status", title: status }, status)];
}

function drawing(entries, width, height) {
  const picture = svg("svg", { class: "rlg-curve-drawing", role: "img", "aria-label": spoken(entries) });
  // Many methods look at neither of the others.
  const lines = LINES.filter(({ name, of }) => name === "reward" || entries.some((entry) => of(entry)));
  const free = height - lines.length * MARGIN.gap - MARGIN.top - 4;
  const shares = lines.reduce((sum, { share }) => sum + share, 0);
  let top = MARGIN.top;
  for (const line of lines) {
    const bottom = top + MARGIN.gap + (free * line.share) / shares;
    picture.append(...panel(line, entries, { left: MARGIN.left, right: width - MARGIN.right, top, bottom }));
    top = bottom;
  }
  return picture;
}

function panel({ name, of }, entries, { left, right, top, bottom }) {
  const values = entries.map(of).filter(Number.isFinite);
  if (!values.length) return [svg("text", { x: left, y: top + 12 }, `${name}: not a number`)];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const roof = top + MARGIN.gap - 4;
  const x = (index) => left + (values.length > 1 ? index / (values.length - 1) : 0.5) * (right - left);
  const y = (value) => bottom - 2 - (high > low ? (value - low) / (high - low) : 0.5) * (bottom - 2 - roof);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
  return [
    svg("text", { x: left, y: top + 12 }, `${name} ${short(values.at(-1))}`),
    svg("text", { x: right, y: top + 12, "text-anchor": "end" }, `${short(low)} … ${short(high)}`),
    svg("line", { class: "rlg-grid", x1: left, x2: right, y1: bottom, y2: bottom }),
    values.length > 1
      ? svg("polyline", { class: "rlg-line", points: points.join(" ") })
      : svg("circle", { class: "rlg-line", cx: x(0), cy: y(values[0]), r: 2 }),
  ];
}

function spoken(entries) {
  return `Reward ${short(entries[0].reward)} in the first iteration, ${short(entries.at(-1).reward)} in the last`;
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}
