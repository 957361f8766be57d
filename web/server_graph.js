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
