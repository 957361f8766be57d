/** Widgets that another setting makes idle say so; nodes that are new start as one wants them. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { after } from "./node_parts.js";
import { everyNode, sourceOf } from "./server_graph.js";

const WIDE_ENOUGH = 330;
const WIDE_ENOUGH_FOR_FILES = 460;
const FILES = ["ckpt_name", "lora_name"];

/** Of each node with both: let `scale` say whether a schedule goes before it. @type {WeakMap<object, () => void>} */
const scales = new WeakMap();

app.registerExtension({
  name: "RLG.WidgetStates",
  setup() {
    // A node says nothing when it is bypassed or muted.
    api.addEventListener("graphChanged", updateScales);
  },
  // While a workflow is loaded, a node does not yet know those behind it, or around it.
  afterConfigureGraph: updateScales,
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("RLG")) return;
    const file = node.widgets?.some(({ name }) => FILES.includes(name));
    node.setSize([Math.max(node.size[0], file ? WIDE_ENOUGH_FOR_FILES : WIDE_ENOUGH), node.size[1]]);
    keepSeed(node);
    start(node);
    namedByFolder(node);
    followSchedule(node);
    if (node.comfyClass === "RLGRamp") followCurve(node);
  },
});

function updateScales() {
  everyNode().forEach((node) => scales.get(node)?.());
}

/** A new node keeps its seed: one compares scales, not noises. A saved one has its own setting. */
function keepSeed(node) {
  const control = node.widgets?.find(({ name }) => name === "control_after_generate");
  if (control) control.value = "fixed";
}

/** Where the defaults of the schema show nothing yet. */
const FIRST_VALUES = { RLGScale: { start_percent: 0.2, end_percent: 0.8 } };

/** A new node has something to see in it; a saved one has its own values. */
function start(node) {
  for (const [name, value] of Object.entries(FIRST_VALUES[node.comfyClass] ?? {}))
    node.widgets.find((widget) => widget.name === name).value = value;
}

/** Older workflows name the file in an adapter's folder; the list has the folder. */
function namedByFolder(node) {
  const lora = node.widgets?.find(({ name }) => name === "lora_name");
  if (!lora) return;
  after(node, "onConfigure", () => {
    const folder = String(lora.value).replace(/[\\/]adapter_model\.safetensors$/, "");
    if (!lora.options.values.includes(lora.value) && lora.options.values.includes(folder)) lora.value = folder;
  });
}

/** With a schedule, `scale` has no effect: it cannot be changed, and says why. */
function followSchedule(node) {
  const scale = node.widgets?.find(({ name }) => name === "scale");
  if (!scale || !node.inputs?.some(({ name }) => name === "schedule")) return;
  let label;
  const update = () => {
    const connected = node.graph && sourceOf(node, "schedule")?.node.mode === 0;
    if (Boolean(connected) === Boolean(scale.disabled)) return;
    if (connected) label = scale.label;
    scale.disabled = connected;
    scale.label = connected ? `${label ?? scale.name}: from schedule` : label;
    node.setDirtyCanvas?.(true, true);
  };
  scales.set(node, update);
  for (const callback of ["onConnectionsChange", "onConfigure"]) after(node, callback, update);
}

/** Only the curve "power" has an exponent. */
function followCurve(node) {
  const [curve, power] = ["curve", "power"].map((name) => node.widgets.find((widget) => widget.name === name));
  const update = () => {
    const linked = node.inputs?.find(({ widget }) => widget?.name === "curve")?.link != null;
    power.hidden = power.options.hidden = curve.value !== "power" && !linked;
    node.setDirtyCanvas?.(true, true);
  };
  after(curve, "callback", update);
  for (const callback of ["onConnectionsChange", "onConfigure"]) after(node, callback, update);
  update();
}
