// View: what changes when a head or a feed-forward layer is taken out.

import { barList } from "./bars.js";
import { effectColor, paint } from "./colors.js";
import { choice, element } from "./dom.js";
import { grid } from "./grid.js";
import { panels } from "./panels.js";
import { blockOf, headOf, select, state } from "./state.js";
import { decimal, following, layerName, ownText, signed, tokenText } from "./words.js";

let over = "token"; // or "mean"
let feedForward = false; // whether the part taken out is the block's feed-forward layer

export const ablationView = {
  id: "ablation",
  title: "Ablation",
  says:
    "How the log-probability of the token that follows changes when one part is taken out: blue " +
    "if the part helped, orange if it did harm. Choose a part to see the distribution without it.",
  functions: ["ablation"],
  ofLastFrame: true,
  build(body, data) {
    if (data.models.some((model) => !model.ablation)) {
      body.append(element("p", { class: "quiet" }, "The ablations are not computed yet."));
      return;
    }
    over = "token";
    feedForward = false;
    const repaint = [];
    body.append(
      choice(
        "show",
        "ablation-over",
        [
          ["token", "the selected token"],
          ["mean", "the mean over all tokens"],
        ],
        (value) => {
          over = value;
          repaint.forEach((update) => update(state, {}));
        },
      ),
    );
    panels(body, data.models, (panel, model) => {
      const update = onePanel(panel, data, model, () =>
        repaint.forEach((all) => all(state, state)),
      );
      repaint.push(update);
      return update;
    });
  },
};

/** Return the changes of the log-probability when a part is taken out, one per token. */
function changesOf(model, block, part) {
  const { heads, feed_forward } = model.ablation;
  return part < model.heads ? heads.under(block, part) : feed_forward.under(block);
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function onePanel(panel, data, model, again) {
  const columnHead = (part) => (part < model.heads ? `${part}` : "feed-forward");
  columnHead.corner = "head";
  const table = grid({
    label: `ablations of ${model.name}: blocks by heads and feed-forward`,
    rows: model.layers,
    columns: model.heads + 1,
    rowHead: layerName,
    upward: false,
    columnHead,
    pick(block, part) {
      feedForward = part === model.heads;
      select({ layer: block, ...(feedForward ? {} : { head: part }) });
      again();
    },
  });
  table.node.classList.add("ablations", ...(model.heads > 8 ? ["many"] : []));
  const [low, high] = [element("span"), element("span")];
  const scale = element(
    "p",
    { class: "scale" },
    low,
    element("span", { class: "ramp effect turned" }),
    high,
    element("span", { class: "quiet" }, "change when taken out"),
  );
  const without = withoutPanel(data, model);
  panel.append(
    element("div", { class: "two" }, element("div", {}, table.node, scale), without.node),
  );

  function paintCells() {
    const value = (block, part) => {
      const changes = changesOf(model, block, part);
      return over === "token" ? changes[state.token] : mean(changes);
    };
    let most = 1e-6;
    table.each((_, block, part) => (most = Math.max(most, Math.abs(value(block, part)))));
    table.each((cell, block, part) => {
      const change = value(block, part);
      cell.textContent = signed(change);
      paint(cell, effectColor(-change / most));
    });
    low.textContent = signed(-most);
    high.textContent = signed(most);
  }
  return (now, before) => {
    if (now.head !== before.head && before.head !== undefined) feedForward = false;
    if (now.token !== before.token || before.head === undefined) paintCells();
    const part = feedForward ? model.heads : headOf(model);
    table.mark(blockOf(model), part);
    without.show(blockOf(model), part);
  };
}

function withoutPanel(data, model) {
  const count = model.ablation.head_ids.shape[3];
  const title = element("h4");
  const said = element("p", { class: "number-text" });
  const [full, less] = ["with it", "without it"].map((words) =>
    barList(`${words}: the next token`, count),
  );
  const node = element(
    "div",
    { class: "without" },
    title,
    said,
    element(
      "div",
      { class: "pair" },
      element("div", {}, element("p", { class: "quiet" }, "with it"), full.node),
      element("div", {}, element("p", { class: "quiet" }, "without it"), less.node),
    ),
  );

  function show(block, part) {
    const t = state.token;
    const isHead = part < model.heads;
    const { head_ids, head_probs, feed_forward_ids, feed_forward_probs } = model.ablation;
    const rows = (ids, probs) =>
      Array.from(ids, (id, i) => ({
        text: data.texts[id],
        probability: probs[i],
        target: id === model.target[t],
      })).slice(0, count);
    const name = isHead ? `head ${part}` : "its feed-forward layer";
    title.textContent = `Block ${block} without ${name}`;
    const logprob = model.logprob.values[t];
    const change = changesOf(model, block, part)[t];
    said.replaceChildren(
      "log-probability of ",
      tokenText(following(data, model, t)),
      " after ",
      tokenText(ownText(data.tokens[t])),
      `: ${decimal(logprob)} → ${decimal(logprob + change)}`,
    );
    const last = model.layers;
    full.update(rows(model.lens.ids.under(last, t), model.lens.probs.under(last, t)));
    less.update(
      isHead
        ? rows(head_ids.under(block, part, t), head_probs.under(block, part, t))
        : rows(feed_forward_ids.under(block, t), feed_forward_probs.under(block, t)),
    );
  }
  return { node, show };
}
