/** Sentences of the pack where they are seen: the error of a run beside the page's own sign, a warning in its node. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPart, html } from "./node_parts.js";
import { isOfOpenWorkflow, nodeAt } from "./server_graph.js";

// Of a line of text in a node of usual width: its characters, and its height in pixels.
const LINE = { length: 44, height: 17 };
const PADDING = 18;
const WARNING = "rlg_warning"; // as in nodes/page.py
const LIFE = { success: 5000, warn: 10000, error: undefined };

/** What each node was warned of in its last run. @type {WeakMap<object, string[]>} */
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
      if (node) showWarnings(node, []);
    });
    api.addEventListener(WARNING, ({ detail }) => {
      const { node: id, sentence } = detail;
      if (!isOfOpenWorkflow(detail)) {
        tellOnce(detail);
        return;
      }
      const node = nodeAt(String(id));
      const said = warnings.get(node) ?? [];
      if (node && !said.includes(sentence)) showWarnings(node, [...said, sentence]);
    });
  },
});

/** Of a run of another workflow, whose nodes are not here. */
function tellOnce({ prompt, sentence }) {
  const key = `${prompt} ${sentence}`;
  if (!elsewhere.has(key)) tell("warn", sentence);
  elsewhere.add(key);
}

function heightOf(sentences) {
  const lines = sentences.map(({ length }) => Math.ceil(length / LINE.length));
  return PADDING + LINE.height * lines.reduce((a, b) => a + b, 0);
}

/** In the node, until it runs again. */
function showWarnings(node, sentences) {
  warnings.set(node, sentences);
  const shown = node.widgets?.find(({ name }) => name === "rlg_warnings");
  if (!sentences.length) {
    if (shown) node.removeWidget(shown);
    return;
  }
  if (!elements.has(node)) elements.set(node, html("div", { class: "rlg-part rlg-warnings", role: "alert" }));
  const element = elements.get(node);
  element.replaceChildren(...sentences.map((sentence) => html("p", {}, sentence)));
  if (!shown) addPart(node, "rlg_warnings", element, () => heightOf(warnings.get(node)));
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
  node.graph?.setDirtyCanvas(true, true);
}
