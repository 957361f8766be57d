/** The curve in the schedule nodes: what the widgets say now, without a run. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { curveDrawing } from "./curve_drawing.js";
import { addPart, after, hideHostPreview, html, outputOf, pictureUrl } from "./node_parts.js";
import { SCHEDULE_NODES, scheduleOf } from "./schedule.js";

const MIN_HEIGHT = 145;

app.registerExtension({
  name: "RLG.ScheduleCurve",
  nodeCreated(node) {
    if (SCHEDULE_NODES.includes(node.comfyClass)) addCurve(node);
  },
});

function addCurve(node) {
  const widgets = [...node.widgets];
  const element = html("div", { class: "rlg-part rlg-curve" });
  const draw = () => {
    const { clientWidth: width, clientHeight: height } = element;
    if (width && height) element.replaceChildren(content(node, widgets, width, height));
  };
  addPart(node, "rlg_curve", element, () => MIN_HEIGHT);
  hideHostPreview(node);
  new ResizeObserver(draw).observe(element);
  for (const widget of widgets) after(widget, "callback", draw);
  for (const callback of ["onConfigure", "onConnectionsChange", "onExecuted"]) after(node, callback, draw);
}

/** The curve, or the sentence with which the server would refuse the widgets. */
function content(node, widgets, width, height) {
  const linked = node.inputs?.find((input) => input.widget && input.link != null);
  // Only the server knows what comes through a link.
  if (linked) {
    const picture = outputOf(node)?.images?.[0];
    if (picture) return html("img", { src: pictureUrl(api, picture), alt: "Scale over the steps of the last run" });
    return html("p", {}, `${linked.name} comes from another node: run to see the curve.`);
  }
  try {
    const values = Object.fromEntries(widgets.map(({ name, value }) => [name, value]));
    return curveDrawing(scheduleOf(node.comfyClass, values), width, height);
  } catch (error) {
    return html("p", { role: "alert", class: "rlg-refused" }, error.message);
  }
}
