/** What one does with a cell of a sweep: go on with its scale, or with its picture. */

import { numberIn, partsOf } from "./cell_table.js";
import { everyNode, isInSubgraph, sourceOf } from "./server_graph.js";

const WITH_SCALE = ["RLGKSampler", "RLGModel", "RLGGuider", "RLGBranch"];
const [SWITCHED, RAMP] = ["RLGCombinedGeneration", "RLGRamp"];
const [SWEEP, LORA_AXIS, PICK] = ["RLGSweep", "RLGLoraAxis", "RLGPickBest"];
/** Type of a LoRA loader → its widget for the strength, which an axis has at 1. */
const STRENGTHS = { RLGLoadLora: "strength", RLGLoadModels: "lora_strength" };
const GAP = 60;

/** Whether a label says a scale. */
export function hasScale(label) {
  return numberIn(label, "scale") !== undefined;
}

/**
 * Write the scale (and switch point, power and what axes say) of a cell into the node that samples the same tuned model,
 * or into its schedule. Where there is none, an RLG KSampler with the sweep's own settings is put beside the sweep.
 *
 * @param {object} grid the node that shows the cell
 * @param {string} label of the cell
 * @returns {object} the node that got the scale
 * @throws {Error} there is nothing to write into, or its value comes from another node
 */
export function useScale(grid, label) {
  const sweep = sweepOf(grid);
  const axes = axesOf(sweep);
  const settings = settingsOf(axes, label);
  const found = samplerFor(sweep, Object.keys(settings));
  const lora = loraOf(axes, label);
  const loader = lora && originOf(found ?? sweep, "tuned");
  if (lora && !STRENGTHS[loader?.type])
    throw new Error(`The tuned model does not come from RLG Load LoRA or RLG Load Models: load ${lora} yourself.`);
  if (!found && !sweep) throw new Error("There is no RLG KSampler or RLG Model to write the scale into: add one.");
  if (!found && sweep.type !== SWEEP)
    throw new Error("The labels do not come from RLG Sweep, and there is no RLG KSampler or RLG Model: add one.");
  if (!found && isInSubgraph(sweep))
    throw new Error("The sweep is in a subgraph, and no RLG KSampler or RLG Model samples its tuned model: add one.");
  const schedule = scheduleOf(label);
  // All before the first change: what is refused leaves nothing behind.
  checkFree(found, Object.keys(settings));
  if (lora) checkFree(loader, ["lora_name", STRENGTHS[loader.type]]);
  const own = found && activeSchedule(found);
  if (!schedule) checkFree(found, ["scale"]);
  else if (own?.type === schedule.type) checkFree(own, Object.keys(schedule.values));
  const sampler = found ?? newSampler(sweep, Object.keys(settings));
  for (const [name, value] of Object.entries(settings)) set(sampler, name, value);
  if (lora) {
    set(loader, "lora_name", lora);
    set(loader, STRENGTHS[loader.type], 1);
  }
  const target = schedule ? writeSchedule(sampler, schedule) : writeScale(sampler, numberIn(label, "scale"));
  sampler.graph.setDirtyCanvas(true, true);
  return target;
}

/**
 * Put a picture into ComfyUI's input folder and into a Load Image: the selected one, else a new one beside the grid.
 *
 * @param {object} api
 * @param {object} grid
 * @param {import("./cell_viewer.js").Cell} cell
 * @param {object[]} selected nodes
 * @returns {Promise<object>} the Load Image
 * @throws {Error} the picture is gone, or the server does not take it
 */
export async function toLoadImage(api, grid, { url, label }, selected) {
  const picture = await fetch(url);
  if (!picture.ok) throw new Error("The picture is gone from the server: run again.");
  const form = new FormData();
  form.append("image", await picture.blob(), `rlg ${label.replaceAll(/[^\w. -]/g, "")}.png`);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!answer.ok) throw new Error(`The server did not take the picture (${answer.status} ${answer.statusText}).`);
  const { name, subfolder } = await answer.json();
  const file = subfolder ? `${subfolder}/${name}` : name;
  const node = selected.find(({ type }) => type === "LoadImage") ?? beside(grid, "LoadImage");
  const widget = widgetOf(node, "image");
  if (Array.isArray(widget.options.values) && !widget.options.values.includes(file)) widget.options.values.push(file);
  set(node, "image", file);
  return node;
}

/** The axis nodes of a sweep, from the innermost on. */
function axesOf(sweep) {
  const axes = [];
  for (let node = sweep && originOf(sweep, "axis"); node; node = originOf(node, "axis"))
    if (isActive(node)) axes.push(node); // a bypassed one hands on the next
  return axes;
}

/** What a sampler needs to be set to for a cell, by the names of its widgets; those of schedules are not among them. */
function settingsOf(axes, label) {
  const names = axes.map((axis) => widgetOf(axis, "vary")?.value).filter((name) => name && name !== "power");
  const numbers = names.map((name) => [name, numberIn(label, name)]);
  return Object.fromEntries(numbers.filter(([, number]) => number !== undefined));
}

/** The LoRA of a cell as lists of LoRAs have it; labels have its name without folder, suffix and commas. */
function loraOf(axes, label) {
  const said = partsOf(label).get("lora")?.slice("lora ".length);
  const choices = axes.filter(({ type }) => type === LORA_AXIS).flatMap(({ widgets }) => widgets.map(({ value }) => value));
  return choices.find((value) => {
    const whole = String(value).replaceAll(",", "");
    return said && (said === whole || said === whole.split(/[\\/]/).at(-1).replace(/\.safetensors$/, ""));
  });
}

/** The node that made a grid's cells: labels may come through RLG Pick Best. */
function sweepOf(grid) {
  let node = originOf(grid, "labels");
  while (node?.type === PICK) node = originOf(node, "labels");
  return node;
}

/**
 * The pack's sampler or model node with the sweep's tuned model and these widgets, if there is one.
 *
 * @throws {Error} it is not known which of several
 */
function samplerFor(sweep, widgets) {
  const tuned = sweep && sourceOf(sweep, "tuned");
  const fitting = everyNode().filter((node) => {
    const fits = WITH_SCALE.includes(node.type) && isActive(node) && widgets.every((name) => widgetOf(node, name));
    const source = fits && sourceOf(node, "tuned");
    return source && (!tuned || (source.node === tuned.node && source.slot === tuned.slot));
  });
  if (!tuned && fitting.length > 1)
    throw new Error("The labels do not come from RLG Sweep, and several nodes have a scale: set it in the right one.");
  return fitting[0];
}

/** An RLG KSampler with what the sweep has, but for the links of widgets to be set, decoded and saved like the sweep. */
function newSampler(sweep, widgets) {
  const { graph } = sweep;
  const sampler = beside(sweep, "RLGKSampler");
  for (const { name } of sampler.inputs) if (!widgets.includes(name)) copyLink(sweep, sampler, name);
  for (const { name, value } of sweep.widgets)
    if (widgetOf(sampler, name) && !linkOf(sampler, name)) set(sampler, name, value);
  const decoder = (sweep.outputs[0].links ?? [])
    .map((id) => graph.getNodeById(graph.links[id].target_id))
    .find(({ type }) => type === "VAEDecode");
  if (decoder) {
    const decode = beside(sampler, "VAEDecode");
    sampler.connect(0, decode, slotOf(decode, "samples"));
    copyLink(decoder, decode, "vae");
    const save = beside(decode, "SaveImage");
    decode.connect(0, save, slotOf(save, "images"));
  }
  return sampler;
}

/** The schedule that a cell was sampled with, as type and values of its node; undefined = one scale at every step. */
function scheduleOf(label) {
  const [scale, switchAt, power] = ["scale", "switch", "power"].map((name) => numberIn(label, name));
  if (power !== undefined) return { type: RAMP, values: { start_scale: 0, end_scale: scale, curve: "power", power } };
  if (switchAt !== undefined) return { type: SWITCHED, values: { switch_percent: switchAt, scale } };
  return undefined;
}

/** The schedule that a sampler follows, if there is one. */
function activeSchedule(sampler) {
  const connected = originOf(sampler, "schedule");
  return isActive(connected) ? connected : undefined;
}

function writeScale(sampler, scale) {
  set(sampler, "scale", scale);
  // The cell had its scale at every step, and a schedule would go before it.
  if (activeSchedule(sampler)) sampler.disconnectInput(slotOf(sampler, "schedule"));
  return sampler;
}

/** Into the schedule that a sampler has, or a new one. */
function writeSchedule(sampler, { type, values }) {
  const schedule = activeSchedule(sampler);
  const target = schedule?.type === type ? schedule : added(sampler, type, sampler.pos[0]);
  if (target !== schedule) target.connect(0, sampler, slotOf(sampler, "schedule"));
  for (const [name, value] of Object.entries(values)) set(target, name, value);
  return target;
}

/** A new node to the right of another. */
function beside(node, type) {
  return added(node, type, node.pos[0] + node.size[0] + GAP);
}

/** A new node from a place on to the right, as high as another or below what is there. */
function added(node, type, left) {
  const made = LiteGraph.createNode(type);
  const inTheWay = node.graph.nodes.filter(({ pos, size }) => pos[0] < left + made.size[0] && left < pos[0] + size[0]);
  made.pos = [left, Math.max(node.pos[1], ...inTheWay.map(({ pos, size }) => pos[1] + size[1] + GAP))];
  node.graph.add(made);
  return made;
}

function copyLink(from, to, name) {
  const link = linkOf(from, name);
  if (link) from.graph.getNodeById(link.origin_id).connect(link.origin_slot, to, slotOf(to, name));
}

/** Whether a node has a part in a run: it is neither bypassed nor muted. */
function isActive(node) {
  return node?.mode === 0;
}

/** The node that an input comes from. */
function originOf(node, name) {
  return sourceOf(node, name)?.node;
}

function linkOf(node, name) {
  const slot = slotOf(node, name);
  return slot < 0 ? null : node.getInputLink(slot);
}

function slotOf(node, name) {
  return node.inputs?.findIndex((input) => input.name === name) ?? -1;
}

function widgetOf(node, name) {
  return node?.widgets?.find((widget) => widget.name === name);
}

/** @throws {Error} a widget of a node, if there is one, has its value from another node */
function checkFree(node, names) {
  const taken = node && names.find((name) => linkOf(node, name));
  if (taken) throw new Error(`${taken} of ${node.title} (#${node.id}) comes from another node: set it there.`);
}

function set(node, name, value) {
  checkFree(node, [name]);
  const widget = widgetOf(node, name);
  widget.value = value;
  widget.callback?.(value);
}
