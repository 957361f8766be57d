/** Sentences of the pack where they are seen: the error of a run beside the page's own sign, a warning in its node. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPart, html } from "./node_parts.js";
import { isOfOpenWorkflow, nodeAt } from "./server_graph.js";

// In pixels: a character as words fill lines, the height of a line, and what is around all and below each sentence.
const CHARACTER = 6.6;
const LINE = 16;
const PADDING = { sides: 38, ends: 10, below: 8 };
const MAX_HEIGHT = 190; // more is scrolled to
const WARNING = "rlg_warning"; // as in nodes/page.py
const LIFE = { success: 5000, warn: 10000, error: undefined };

/** What each node was warned of in its last run. @type {WeakMap<object, Set<string>>} */
const warnings = new WeakMap();
/** Where that is shown: one for a node, since nodes that are HTML do not take another one of the same name. */
const elements = new WeakMap();
/** What was said of runs of other workflows. */
const elsewhere = new Set();

/**
 * @param {"success" | "warn" | "error"} severity
 * @param {string} sentence
 */
export function tell(severity, sentence) {
  app.extensionManager.toast.add({ severity, summary: "RLG", detail: sentence, life: LIFE[severity] });
}

app.registerExtension({
  name: "RLG.Messages",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      // Where the page says it in a dialog, once is enough.
      const hidden = app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab");
      if (hidden && detail.node_type?.startsWith("RLG")) tell("error", detail.exception_message.trim());
    });
    api.addEventListener("executing", ({ detail }) => {
      const node = detail && nodeAt(String(detail));
      if (node) clearWarnings(node);
    });
    api.addEventListener(WARNING, ({ detail }) => {
      const { node: id, sentence } = detail;
      if (!isOfOpenWorkflow(detail)) {
        tellOnce(detail);
        return;
      }
      const node = nodeAt(String(id));
      if (node && !warnings.get(node)?.has(sentence)) showWarning(node, sentence);
    });
  },
});

/** Of a run of another workflow, whose nodes are not here. */
function tellOnce({ prompt, sentence }) {
  const key = `${prompt} ${sentence}`;
  if (!elsewhere.has(key)) tell("warn", sentence);
  elsewhere.add(key);
}

function heightOf(node) {
  const inLine = Math.max((node.size[0] - PADDING.sides) / CHARACTER, 1);
  const heights = [...(warnings.get(node) ?? [])].map(({ length }) => PADDING.below + LINE * Math.ceil(length / inLine));
  return Math.min(PADDING.ends + heights.reduce((a, b) => a + b, 0), MAX_HEIGHT);
}

function widgetOf(node) {
  return node.widgets?.find(({ name }) => name === "rlg_warnings");
}

/** Its wheel scrolls it, once it has the focus. */
function emptyElement() {
  return html("div", { class: "rlg-part rlg-warnings", role: "alert", tabindex: "0", "data-capture-wheel": "true" });
}

function clearWarnings(node) {
  warnings.delete(node);
  elements.get(node)?.replaceChildren();
  const shown = widgetOf(node);
  if (shown) node.removeWidget(shown);
}

/** In the node, below what it was warned of before, until it runs again. */
function showWarning(node, sentence) {
  if (!warnings.has(node)) warnings.set(node, new Set());
  warnings.get(node).add(sentence);
  if (!elements.has(node)) elements.set(node, emptyElement());
  elements.get(node).append(html("p", {}, sentence));
  if (!widgetOf(node)) addPart(node, "rlg_warnings", elements.get(node), () => heightOf(node));
  node.setSize([node.size[0], Math.max(node.computeSize()[1], node.size[1])]);
  node.graph?.setDirtyCanvas(true, true);
}
