/** RLG Load Prompts takes a file from the user's disk, and says so where there is none to choose. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { tell } from "./messages.js";
import { addPart, html, noteChange } from "./node_parts.js";
import { everyNode } from "./server_graph.js";

const NODE = "RLGLoadPrompts";
const SUFFIXES = ".txt,.csv,.jsonl";
const HEIGHT = 44;
const HEIGHT_WITH_SENTENCE = 108;

/** Of each node: say whether there is a file to choose. @type {WeakMap<object, () => void>} */
const updates = new WeakMap();

app.registerExtension({
  name: "RLG.PromptFiles",
  refreshComboInNodes: updateAll,
  nodeCreated(node) {
    if (node.comfyClass === NODE) addUpload(node);
  },
});

function updateAll() {
  for (const node of everyNode()) updates.get(node)?.();
}

function addUpload(node) {
  const widget = node.widgets.find(({ name }) => name === "file");
  const files = () => widget.options.values;
  widget.value ??= ""; // a list without a value would show as "undefined"
  const sentence = html("p", {},
    "There is no file of prompts yet: upload one in UTF-8, .txt with a prompt a line, .csv or .jsonl.");
  const choose = html("input", { type: "file", accept: SUFFIXES, hidden: true, "aria-label": "File of prompts" });
  const button = html("button", { type: "button" }, "Upload a file of prompts");
  button.addEventListener("click", () => choose.click());
  choose.addEventListener("change", async () => {
    try {
      if (!choose.files.length) return;
      widget.value = await uploaded(choose.files[0]);
      if (!files().includes(widget.value)) files().push(widget.value);
      widget.callback?.(widget.value);
      noteChange();
      updateAll();
      node.graph.setDirtyCanvas(true, true);
    } catch (error) {
      tell("warn", error.message);
    } finally {
      choose.value = ""; // or the browser would not tell of the same file chosen again
    }
  });
  updates.set(node, () => (sentence.hidden = files().some(Boolean)));
  updates.get(node)();
  const element = html("div", { class: "rlg-part rlg-buttons rlg-upload" }, sentence, button, choose);
  addPart(node, "rlg_upload", element, () => (files().some(Boolean) ? HEIGHT : HEIGHT_WITH_SENTENCE));
}

/** The host takes any file where it takes pictures. */
async function uploaded(file) {
  const form = new FormData();
  form.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!answer.ok) throw new Error(`The server did not take ${file.name} (${answer.status} ${answer.statusText}).`);
  return (await answer.json()).name;
}
