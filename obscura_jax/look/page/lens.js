// View: the logit lens, what each layer would say if it were the last.

import { barList } from "./bars.js";
import { amountColor, amountOf, effectColor, paint, unpaint } from "./colors.js";
import { choice, element } from "./dom.js";
import { grid } from "./grid.js";
import { differencePanel, panels } from "./panels.js";
import { atFrame, layerOf, select, state } from "./state.js";
import {
  decimal,
  following,
  layerName,
  ownText,
  percent,
  place,
  signed,
  tokenText,
  visible,
} from "./words.js";

let colorBy = "top"; // or "target"

export const lensView = {
  id: "lens",
  title: "Logit lens",
  says:
    "What the model would say at each layer if the final normalization and the output layer came " +
    "right after it: the most probable token, its probability, and the rank of the token that " +
    "follows.",
  functions: ["lens"],
  build(body, data) {
    const repaint = [];
    colorBy = "top";
    body.append(
      choice(
        "color",
        "lens-color",
        [
          ["top", "probability of the token shown"],
          ["target", "probability of the token that follows"],
        ],
        (value) => {
          colorBy = value;
          repaint.forEach((update) => update(state, {}));
        },
      ),
    );
    panels(body, data.models, (panel, model) => {
      const update = onePanel(panel, data, model);
      repaint.push(update);
      return update;
    });
    if (data.models.length > 1) difference(body, data);
  },
};

function columnHeads(data, model) {
  const text = (t) => tokenText(ownText(data.tokens[t]));
  text.corner = "token";
  const last = data.tokens.length - 1;
  const next = (t) => tokenText(following(data, model, t), t === last ? "token guess" : "token");
  next.corner = "follows";
  return { columnHead: text, topHead: next };
}

function onePanel(panel, data, model) {
  const table = grid({
    label: `logit lens of ${model.name}: layers by positions`,
    rows: model.layers + 1,
    columns: data.tokens.length,
    rowHead: (row) => layerName(row - 1),
    ...columnHeads(data, model),
    pick: (row, column) => select({ layer: row - 1, token: column }),
    hover: (row, column) => detail.show(row ?? layerOf(model) + 1, column ?? state.token),
  });
  const parts = [];
  table.each((cell) => {
    const token = element("bdi", { dir: "auto" });
    const number = element("small");
    cell.append(token, number);
    parts.push([token, number]);
  });
  const detail = lensDetail(data, model);
  panel.append(
    detail.node,
    table.node,
    element(
      "p",
      { class: "scale" },
      element("span", {}, "0%"),
      element("span", { class: "ramp amount" }),
      element("span", {}, "100%"),
      element("span", { class: "quiet" }, "#1: the token that follows is the most probable"),
    ),
  );
  table.node.classList.add("lens");

  return (now, before) => {
    if (now.frame !== before.frame) {
      const lens = atFrame(model, "lens");
      table.each((cell, row, t) => {
        const [token, number] = parts[row * data.tokens.length + t];
        const probability = lens.probs.at(row, t, 0);
        token.textContent = visible(data.texts[lens.ids.at(row, t, 0)]);
        number.textContent = `${percent(probability)} ${place(lens.target_rank.at(row, t))}`;
        const target = Math.exp(lens.target_logprob.at(row, t));
        paint(cell, amountColor(colorBy === "top" ? probability : target));
      });
    }
    table.mark(layerOf(model) + 1, now.token);
    detail.show(layerOf(model) + 1, now.token);
  };
}

function lensDetail(data, model) {
  const where = element("p");
  const target = element("p", { class: "number-text" });
  const bars = barList("the most probable tokens at this layer", model.lens.ids.shape[2]);
  const node = element(
    "div",
    { class: "detail lens-detail" },
    element("div", {}, where, target),
    bars.node,
  );

  function show(row, t) {
    const lens = atFrame(model, "lens");
    const probs = lens.probs.under(row, t);
    const logprob = lens.target_logprob.at(row, t);
    where.replaceChildren(
      row === 0 ? "embeddings of " : `after ${layerName(row - 1)}, at `,
      tokenText(ownText(data.tokens[t])),
      ` (position ${t})`,
    );
    const end = t === data.tokens.length - 1;
    target.replaceChildren(
      end ? "the text ends here; the model's choice is " : "then follows ",
      tokenText(following(data, model, t)),
      `: ${percent(Math.exp(logprob))}, ${place(lens.target_rank.at(row, t))}, `,
      `log-probability ${decimal(logprob)}`,
    );
    bars.update(
      Array.from(lens.ids.under(row, t), (id, i) => ({
        text: data.texts[id],
        probability: probs[i],
        target: id === model.target[t],
      })),
    );
  }
  return { node, show };
}

function difference(body, data) {
  const [a, b] = data.models;
  if (a.layers !== b.layers) {
    body.append(
      element(
        "p",
        { class: "quiet" },
        `A has ${a.layers} blocks and B has ${b.layers}, so their layers are not compared.`,
      ),
    );
    return;
  }
  differencePanel(
    body,
    data.models,
    "Difference: B minus A, log-probability of the token that follows",
    (panel) => {
      const table = grid({
        label: "difference of the two models: layers by positions",
        rows: a.layers + 1,
        columns: data.tokens.length,
        rowHead: (row) => layerName(row - 1),
        ...columnHeads(data, a),
        pick: (row, column) => select({ layer: row - 1, token: column }),
      });
      table.node.classList.add("lens", "short");
      const [low, high] = [element("span"), element("span")];
      panel.append(
        table.node,
        element(
          "p",
          { class: "scale" },
          low,
          element("span", { class: "ramp effect" }),
          high,
          element("span", { class: "quiet" }, "orange: A; blue: B finds it more probable"),
        ),
      );
      return (now, before) => {
        if (now.frame !== before.frame) {
          const [before_, after] = [a, b].map((model) => atFrame(model, "lens").target_logprob);
          const change = (row, t) =>
            a.target[t] === b.target[t] ? after.at(row, t) - before_.at(row, t) : NaN;
          let most = 1e-6;
          table.each((_, row, t) => (most = Math.max(most, Math.abs(change(row, t)) || 0)));
          table.each((cell, row, t) => {
            const value = change(row, t);
            cell.textContent = Number.isNaN(value) ? "" : signed(value);
            if (Number.isNaN(value)) unpaint(cell);
            else paint(cell, effectColor(value / most));
          });
          low.textContent = signed(-most);
          high.textContent = signed(most);
        }
        table.mark(layerOf(a) + 1, now.token);
      };
    },
  );
}
