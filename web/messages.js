/** Sentences of the pack where they are seen: the error of a run beside the page's own sign, a warning in its node. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPart, after, html } from "./node_parts.js";

const WARNING_HEIGHT = 56;
const LIFE = { success: 5000, warn: 10000, error: undefined };

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
    // Without a warning a node has nothing to say at its end, so that the last one goes when it starts.
    api.addEventListener("executing", ({ detail }) => {
      const node = detail && nodeAt(String(detail));
      if (node) showWarnings(node, []);
    });
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("RLG"))
      after(node, "onExecuted", (output) => showWarnings(node, output?.rlg_warnings ?? []));
  },
});

/** The node with an id as the server has it: of a node in a subgraph it holds those of the nodes around it. */
function nodeAt(path) {
  const ids = path.split(":");
  const last = ids.pop();
  let { graph } = app;
  for (const id of ids) graph = graph?.getNodeById(id)?.subgraph;
  return graph?.getNodeById(last);
}

/** In the node, until it runs again. */
function showWarnings(node, sentences) {
  const shown = node.widgets?.find(({ name }) => name === "rlg_warnings");
  if (shown) node.removeWidget(shown);
  if (!sentences.length) return;
  const element = html("div", { class: "rlg-part rlg-warnings", role: "alert" },
    ...sentences.map((sentence) => html("p", {}, sentence)));
  addPart(node, "rlg_warnings", element, () => WARNING_HEIGHT * sentences.length);
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1])]);
  node.graph?.setDirtyCanvas(true, true);
}
