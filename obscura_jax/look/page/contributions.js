// View: the parts that sum to a token's logit, and the length of the residual stream.

import { element } from "./dom.js";
import { normChart } from "./norms.js";
import { panels } from "./panels.js";
import { select, state } from "./state.js";
import { decimal, following, ownText, signed, tokenText } from "./words.js";

export const contributionsView = {
  id: "contributions",
  title: "Contributions",
  says:
    "How much each part adds to the logit of the token that follows, through the final " +
    "normalization: blue for it, orange against it. The parts sum to the logit.",
  functions: ["attribution", "residual"],
  ofLastFrame: true,
  build(body, data) {
    panels(body, data.models, (panel, model) => onePanel(panel, data, model));
  },
};

const CLOSE = 0.01; // twice the rounding of what is shown

const sum = (values) => values.reduce((a, b) => a + b, 0);

/** Return the parts of the logit at a position, first layer first: {name, value, block, heads}. */
export function partsOf(model, t) {
  const { embeddings, heads, attention_bias, feed_forward, final_norm } = model.attribution;
  const parts = [{ name: "embeddings", value: embeddings.values[t], block: -1 }];
  for (let block = 0; block < model.layers; block++) {
    const each = Array.from({ length: model.heads }, (_, head) => ({
      name: `head ${head}`,
      value: heads.at(block, head, t),
      block,
      head,
    }));
    each.push({ name: "bias", value: attention_bias.at(block, t), block });
    parts.push({
      name: `block ${block} attention`,
      value: sum(each.map((one) => one.value)),
      block,
      heads: each,
    });
    parts.push({ name: `block ${block} feed-forward`, value: feed_forward.at(block, t), block });
  }
  parts.push({ name: "final normalization", value: final_norm.values[t], block: model.layers });
  return parts;
}

function onePanel(panel, data, model) {
  const heading = element("p", { class: "number-text" });
  const rows = new Map();
  const list = element("ul", {
    class: "parts",
    "aria-label": `parts of the logit under ${model.name}`,
  });
  const total = element("p", { class: "number-text total" });
  const chart = normChart(model);

  function row(part, inside = false) {
    const bar = element("span", { class: "bar" });
    const number = element("span", { class: "number" });
    const track = element("span", { class: "track", "aria-hidden": "true" }, bar);
    const name = part.heads
      ? element("button", { type: "button", "aria-expanded": "false" }, part.name)
      : element("span", {}, part.name);
    const line = element("div", { class: "part" }, name, track, number);
    const node = element("li", { class: inside ? "inside" : "" }, line);
    rows.set(part.name + part.block, { bar, number, line });
    line.addEventListener("click", () => {
      if (part.block < 0 || part.block >= model.layers) return;
      select({ layer: part.block, ...(part.head === undefined ? {} : { head: part.head }) });
    });
    if (part.heads) {
      const inner = element("ul", { hidden: true }, ...part.heads.map((one) => row(one, true)));
      name.addEventListener("click", () => {
        inner.hidden = !inner.hidden;
        name.setAttribute("aria-expanded", !inner.hidden);
      });
      node.append(inner);
    }
    return node;
  }
  list.append(...partsOf(model, 0).map((part) => row(part)));
  panel.append(
    element("div", { class: "two" }, element("div", {}, heading, list, total), chart.node),
  );

  return (now, before) => {
    if (now.token !== before.token) {
      const t = state.token;
      const parts = partsOf(model, t);
      const all = parts.flatMap((part) => [part, ...(part.heads ?? [])]);
      const most = Math.max(...all.map((part) => Math.abs(part.value)), 1e-6);
      for (const part of all) {
        const { bar, number } = rows.get(part.name + part.block);
        const width = (50 * Math.abs(part.value)) / most;
        bar.style.width = `${width}%`;
        bar.style.left = `${part.value < 0 ? 50 - width : 50}%`;
        bar.classList.toggle("against", part.value < 0);
        number.textContent = signed(part.value);
      }
      const target = tokenText(following(data, model, t));
      heading.replaceChildren(
        "the logit of ",
        target,
        " after ",
        tokenText(ownText(data.tokens[t])),
      );
      const [whole, logit] = [
        sum(parts.map((part) => part.value)),
        model.attribution.logit.values[t],
      ];
      const relation = Math.abs(whole - logit) < CLOSE ? "=" : "≠";
      total.textContent = `sum of the parts ${decimal(whole)} ${relation} logit ${decimal(logit)}`;
    }
    for (const part of partsOf(model, state.token)) {
      rows.get(part.name + part.block).line.classList.toggle("selected", part.block === now.layer);
    }
    chart.show();
  };
}
