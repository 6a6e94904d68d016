// View: the attention of every head, as small maps; one head is enlarged in attention_head.js.

import { headPanel } from "./attention_head.js";
import { drawMap } from "./attention_map.js";
import { element, menu, reveal } from "./dom.js";
import { moveOf } from "./grid.js";
import { panels } from "./panels.js";
import { atFrame, blockOf, headOf, select } from "./state.js";
import { decimal } from "./words.js";

const MEASURES = {
  "previous token": "The score is the mean weight of the token right before the one that reads.",
  "first token": "The score is the mean weight of the first token of the text.",
  "same token": "The score is the mean weight of earlier copies of the token that reads.",
  induction:
    "The score is the mean weight of tokens that followed earlier copies of the token that reads.",
};
const MANY = 8; // more heads than this are drawn smaller
let order = "block";

export const attentionView = {
  id: "attention",
  title: "Attention",
  says:
    "Which earlier tokens each head reads: in a map, a row is the token that reads and a column " +
    "the token that is read. Choose a head to enlarge it.",
  functions: ["attention", "head_scores"],
  build(body, data) {
    const sorters = [];
    const measure = element("p", { class: "quiet measure" });
    const scores = Object.keys(data.models[0].head_scores ?? {});
    if (!scores.includes(order)) order = "block";
    const options = [["block", "block and head"], ...scores.map((name) => [name, name])];
    const sort = menu("sort heads by", options, (value) => {
      order = value;
      explain();
      sorters.forEach((arrange) => arrange());
    });
    sort.list.value = order;
    function explain() {
      measure.textContent = order === "block" ? "" : (MEASURES[order] ?? "");
    }
    explain();
    body.append(element("div", { class: "controls" }, sort.node, measure));
    panels(body, data.models, (panel, model) => {
      const maps = headMaps(data, model);
      const head = headPanel(data, model);
      panel.append(element("div", { class: "attention" }, maps.node, head.node));
      maps.arrange();
      sorters.push(maps.arrange);
      return (now, before) => {
        maps.update(now, before);
        head.update(now, before);
      };
    });
  },
};

function headMaps(data, model) {
  const many = model.heads > MANY;
  const node = element("div", {
    class: many ? "maps many" : "maps",
    role: "listbox",
    "aria-label": `heads of ${model.name}`,
  });
  node.style.setProperty("--heads", model.heads);
  const heads = Array.from({ length: model.layers * model.heads }, (_, i) => {
    const [layer, head] = [Math.floor(i / model.heads), i % model.heads];
    const canvas = element("canvas", { "aria-hidden": "true" });
    const words = element("span", { class: "number-text" });
    const map = element(
      "button",
      {
        type: "button",
        class: "map",
        role: "option",
        tabindex: -1,
        "aria-label": `block ${layer}, head ${head}`,
      },
      canvas,
      words,
    );
    map.addEventListener("click", () => select({ layer, head }));
    return { layer, head, canvas, words, map };
  });
  let shown = heads;

  const scoreOf = ({ layer, head }) => model.head_scores[order].at(layer, head);

  function arrange() {
    const byScore = order !== "block";
    const value = (one) => (Number.isNaN(scoreOf(one)) ? -Infinity : scoreOf(one));
    shown = byScore ? heads.toSorted((a, b) => value(b) - value(a) || 0) : heads;
    for (const one of heads) {
      const score = byScore ? scoreOf(one) : 0;
      one.words.textContent = byScore
        ? `${one.layer}.${one.head}: ${Number.isNaN(score) ? "no case" : decimal(score)}`
        : `${one.layer}.${one.head}`;
    }
    if (byScore) {
      node.replaceChildren(element("div", { class: "map-row" }, ...shown.map((one) => one.map)));
    } else {
      node.replaceChildren(
        ...Array.from({ length: model.layers }, (_, layer) =>
          element(
            "div",
            { class: "map-row", role: "group", "aria-label": `block ${layer}` },
            element("span", { class: "map-head quiet" }, many ? `${layer}` : `block ${layer}`),
            ...heads.filter((one) => one.layer === layer).map((one) => one.map),
          ),
        ),
      );
    }
  }

  node.addEventListener("keydown", (event) => {
    const move = moveOf(event);
    if (!move) return;
    event.preventDefault();
    const at = shown.findIndex((one) => one.layer === blockOf(model) && one.head === headOf(model));
    const line = order === "block" ? model.heads : 1;
    const next = Math.min(Math.max(at + move[1] - move[0] * line, 0), shown.length - 1);
    select({ layer: shown[next].layer, head: shown[next].head });
    shown[next].map.focus();
  });

  function update(now, before) {
    if (now.frame !== before.frame) {
      const attention = atFrame(model, "attention");
      for (const { layer, head, canvas } of heads) {
        drawMap(canvas, attention.under(layer, head), data.tokens.length);
      }
    }
    for (const { layer, head, map } of heads) {
      const chosen = layer === blockOf(model) && head === headOf(model);
      map.setAttribute("aria-selected", chosen);
      map.setAttribute("tabindex", chosen ? 0 : -1);
      if (chosen) reveal(node, map);
    }
  }
  return { node, arrange, update };
}
