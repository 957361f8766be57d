/** What one turns most stands together: the scale below cfg. Only on the screen: saved values keep their positions. */

import { app } from "../../scripts/app.js";
import { after } from "./node_parts.js";

const BELOW_CFG = ["scale", "scales", "switch_percents", "tuned_cfg"];

app.registerExtension({
  name: "RLG.WidgetOrder",
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("RLG") && node.widgets?.some(({ name }) => name === "cfg")) reorder(node);
  },
});

/**
 * Workflows hold the values of widgets by position, in the order of the schema, which other programs read too. So a node
 * has that order while it is filled, and what it writes is put back into it.
 */
function reorder(node) {
  const saved = [...node.widgets];
  const moved = BELOW_CFG.map((name) => saved.find((widget) => widget.name === name)).filter(Boolean);
  const shown = saved.filter((widget) => !moved.includes(widget));
  shown.splice(shown.findIndex(({ name }) => name === "cfg") + 1, 0, ...moved);
  const put = (order) => {
    const later = node.widgets.filter((widget) => !saved.includes(widget));
    node.widgets.splice(0, node.widgets.length, ...order, ...later);
  };
  put(shown);
  const configure = node.configure;
  node.configure = function (...args) {
    put(saved);
    try {
      return configure.apply(this, args);
    } finally {
      put(shown);
    }
  };
  after(node, "onSerialize", (written) => {
    if (written.widgets_values)
      written.widgets_values = saved.map((widget) => written.widgets_values[node.widgets.indexOf(widget)]);
  });
}
