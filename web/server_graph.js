/** Nodes and links as the server sees them: what is in subgraphs lies beside the rest. */

import { app } from "../../scripts/app.js";

/**
 * The node with an id as the server has it: of a node in a subgraph it holds those of the nodes around it ("12:3").
 *
 * @param {string} path
 * @returns {object | undefined}
 */
export function nodeAt(path) {
  return nodesOn(path).at(-1);
}

/**
 * Whether a message of a run is about the workflow that is open, and not about one in another tab.
 *
 * @param {{workflow: string | null}} message
 */
export function isOfOpenWorkflow({ workflow }) {
  return !workflow || workflow === app.graph.id;
}

/**
 * Whether a link leads from a node to an input, also through the borders of subgraphs.
 *
 * @param {string} path id of the first node as the server has it: a subgraph may be there twice
 * @param {object} node with the input
 * @param {string} name of the input
 */
export function leadsTo(path, node, name) {
  const around = nodesOn(path);
  const from = around.pop();
  const links = from?.outputs?.flatMap((output) => output.links ?? []) ?? [];
  return targetsOf(links, from?.graph, around).some(([target, input]) => target === node && input.name === name);
}

/**
 * Where an input's value is made, also beyond the borders of subgraphs.
 *
 * @param {object} node with the input
 * @param {string} name of the input
 * @returns {{node: object, slot: number} | undefined}
 */
export function sourceOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? undefined : originOf(node.graph, node.inputs[slot].link);
}

/** All nodes of the workflow, in subgraphs too, those of a graph before its subgraphs'. */
export function everyNode({ nodes } = app.graph) {
  return [...nodes, ...nodes.filter(({ subgraph }) => subgraph).flatMap(({ subgraph }) => everyNode(subgraph))];
}

/** Whether a node is not in the workflow itself. */
export function isInSubgraph(node) {
  return node.graph !== app.graph;
}

/** Where a link begins. Of a subgraph that is there twice, the first one is looked out of. */
function originOf(graph, id) {
  const link = graph?.getLink(id);
  if (!link) return undefined;
  const { origin_id: origin, origin_slot: slot } = link;
  if (link.originIsIoNode) {
    const outer = everyNode().find(({ subgraph }) => subgraph === graph);
    return outer && originOf(outer.graph, outer.inputs[slot].link);
  }
  const node = graph.getNodeById(origin);
  if (node?.type === "Reroute") return originOf(graph, node.inputs[0].link);
  return node?.subgraph ? originOf(node.subgraph, node.subgraph.outputs[slot].linkIds[0]) : node && { node, slot };
}

/** The nodes that a path names, from the outermost on; none where one is not there. */
function nodesOn(path) {
  const nodes = [];
  let { graph } = app;
  for (const id of path.split(":")) {
    const node = graph?.getNodeById(id);
    if (!node) return [];
    nodes.push(node);
    graph = node.subgraph;
  }
  return nodes;
}

/**
 * Where links end.
 *
 * @param {number[]} ids of links
 * @param {object} graph that they are in
 * @param {object[]} around the subgraph nodes around it, the innermost last
 * @returns {[node: object, input: object][]}
 */
function targetsOf(ids, graph, around) {
  return ids.flatMap((id) => {
    const link = graph.getLink(id);
    if (!link) return [];
    const { target_id: target, target_slot: slot } = link;
    if (link.targetIsIoNode) {
      const outer = around.at(-1);
      return targetsOf(outer.outputs[slot].links ?? [], outer.graph, around.slice(0, -1));
    }
    const node = graph.getNodeById(target);
    if (!node?.subgraph) return node ? [[node, node.inputs[slot]]] : [];
    return targetsOf(node.subgraph.inputs[slot].linkIds, node.subgraph, [...around, node]);
  });
}
