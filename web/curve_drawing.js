/** A schedule as a small picture: scale over progress, in the colours of the theme. */

import { svg } from "./node_parts.js";
import { describe, outline } from "./schedule.js";

const MARGIN = { left: 54, right: 12, top: 10, bottom: 30 };
const LINE_OF_TEXT = 12;

/**
 * @param {import("./schedule.js").Schedule} schedule
 * @param {number} width in pixels
 * @param {number} height
 * @returns {SVGElement}
 */
export function curveDrawing(schedule, width, height) {
  const line = outline(schedule);
  const scales = line.map(([, scale]) => scale);
  const [low, high] = [Math.min(0, ...scales), Math.max(1, ...scales)];
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const x = (progress) => MARGIN.left + progress * (right - MARGIN.left);
  const y = (scale) => bottom - ((scale - low) / (high - low)) * (bottom - MARGIN.top);

  const drawing = svg("svg", { class: "rlg-curve-drawing", role: "img", "aria-label": describe(schedule) });
  for (const { scale, name, label } of rows(Math.min(...scales), Math.max(...scales), y))
    drawing.append(
      svg("line", { class: name ? "rlg-model" : "rlg-grid", x1: MARGIN.left, x2: right, y1: y(scale), y2: y(scale) }),
      svg("text", { x: MARGIN.left - 6, y: label, "text-anchor": "end", "dominant-baseline": "central" },
        `${name} ${number(scale)}`.trim()),
    );
  for (const tick of [0, 0.25, 0.5, 0.75, 1])
    drawing.append(
      svg("line", { class: "rlg-grid", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }),
      svg("text", { x: x(tick), y: bottom + 14, "text-anchor": anchor(tick) }, number(tick)),
    );
  drawing.append(
    svg("text", { class: "rlg-axis", x: x(0.5), y: height - 3, "text-anchor": "middle" }, "step / number of steps"),
    svg("polyline", { class: "rlg-line", points: line.map(([p, s]) => [x(p).toFixed(1), y(s).toFixed(1)]).join(" ") }),
  );
  return drawing;
}

/** Scales with a line of their own: the two models, and the ends of the curve where there is room for their labels. */
function rows(lowest, highest, y) {
  const apart = Math.max(0, LINE_OF_TEXT - (y(0) - y(1))) / 2; // in a long range the labels of 0 and 1 give way
  const shown = [
    { scale: 0, name: "base", label: y(0) + apart },
    { scale: 1, name: "tuned", label: y(1) - apart },
  ];
  for (const scale of [highest, lowest])
    if (shown.every(({ label }) => Math.abs(y(scale) - label) >= LINE_OF_TEXT))
      shown.push({ scale, name: "", label: y(scale) });
  return shown;
}

function number(value) {
  return String(Number(value.toFixed(3)));
}

function anchor(tick) {
  return tick === 1 ? "end" : "middle";
}
