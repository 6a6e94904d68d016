// View: the text as tokens, colored by the probability that the model gave each of them.

import { barList } from "./bars.js";
import { amountColor, amountOf, effectColor, paint, unpaint } from "./colors.js";
import { element } from "./dom.js";
import { moveOf } from "./grid.js";
import { differencePanel, panels } from "./panels.js";
import { atFrame, select, state } from "./state.js";
import {
  decimal,
  direction,
  ownText,
  percent,
  place,
  signed,
  tokenText,
  visible,
} from "./words.js";

export const tokensView = {
  id: "tokens",
  title: "Tokens",
  says:
    "Each piece of the text, colored by the probability that the model gave it after reading " +
    "only what comes before it. Choose one: every view below follows.",
  functions: ["tokens"],
  build(body, data) {
    panels(body, data.models, (panel, model) => onePanel(panel, data, model));
    if (data.models.length > 1) {
      differencePanel(body, data.models, "Difference: B minus A", (panel) =>
        difference(panel, data),
      );
    }
  },
};

/** Return a row of chips that selects, and functions to color them and to mark the selected one. */
function chipRow(data, label, hover) {
  const text = data.tokens.map((token) => token.text).join("");
  const dir = direction(text);
  const node = element("div", {
    class: "chips",
    role: "listbox",
    "aria-label": label,
    dir,
    "aria-orientation": "horizontal",
  });
  const chips = data.tokens.map((token, t) => {
    const chip = tokenText(ownText(token), "chip");
    chip.setAttribute("role", "option");
    chip.setAttribute("tabindex", -1);
    chip.addEventListener("click", () => select({ token: t }));
    chip.addEventListener("mouseenter", () => hover(t));
    chip.addEventListener("mouseleave", () => hover(state.token));
    node.append(chip);
    if (token.text.endsWith("\n"))
      node.append(element("span", { class: "line-end", role: "presentation" }));
    return chip;
  });
  node.addEventListener("keydown", (event) => {
    const move = moveOf(event);
    if (!move) return;
    event.preventDefault();
    const step = move[1] * (dir === "rtl" && Math.abs(move[1]) === 1 ? -1 : 1) - move[0];
    const t = Math.min(Math.max(state.token + step, 0), chips.length - 1);
    select({ token: t });
    chips[t].focus();
  });
  const mark = () =>
    chips.forEach((chip, t) => {
      chip.setAttribute("aria-selected", t === state.token);
      chip.setAttribute("tabindex", t === state.token ? 0 : -1);
    });
  return { node, chips, mark };
}

function onePanel(panel, data, model) {
  const detail = tokenDetail(data, model);
  const row = chipRow(data, `tokens under ${model.name}`, detail.show);
  const scale = element(
    "p",
    { class: "scale", "aria-hidden": "true" },
    element("span", {}, "≤0.01%"),
    element("span", { class: "ramp amount" }),
    element("span", {}, "100%"),
    element("span", { class: "quiet" }, "probability, on a logarithmic scale"),
  );
  panel.append(row.node, scale, detail.node);
  return (now, before) => {
    if (now.frame !== before.frame) {
      const { values } = atFrame(model, "logprob");
      row.chips.forEach((chip, t) => {
        if (t > 0) paint(chip, amountColor(amountOf(values[t - 1])));
        else chip.classList.add("first");
      });
    }
    row.mark();
    detail.show(now.token);
  };
}

/** Return a box of constant height that describes a token and what the model expected instead. */
function tokenDetail(data, model) {
  const name = element("p", { class: "detail-name" });
  const facts = element("p", { class: "quiet number-text" });
  const said = element("p", { class: "number-text" });
  const expected = barList("what the model expected", model.lens.ids.shape[2]);
  const heading = element("p", { class: "quiet" });
  const node = element(
    "div",
    { class: "detail token-detail" },
    element("div", {}, name, facts, said),
    element("div", {}, heading, expected.node),
  );

  function show(t) {
    const token = data.tokens[t];
    name.replaceChildren(tokenText(ownText(token), "token large"));
    facts.textContent = `position ${t} · id ${token.id} · bytes ${token.bytes}`;
    if (t === 0) {
      said.textContent = "The first token: the model starts here and gives it no probability.";
      heading.textContent = "";
      expected.update([]);
      return;
    }
    const lens = atFrame(model, "lens");
    const last = model.layers;
    const logprob = atFrame(model, "logprob").values[t - 1];
    const rank = lens.target_rank.at(last, t - 1);
    said.textContent =
      `probability ${percent(Math.exp(logprob))} · log-probability ${decimal(logprob)} · ` +
      `${rank === 0 ? "the most probable token" : `${place(rank)} in the model's order`}`;
    heading.textContent = "what the model expected here";
    const probs = lens.probs.under(last, t - 1);
    expected.update(
      Array.from(lens.ids.under(last, t - 1), (id, i) => ({
        text: data.texts[id],
        probability: probs[i],
        target: id === token.id,
      })),
    );
  }
  return { node, show };
}

function difference(panel, data) {
  const [a, b] = data.models;
  const said = element("p", { class: "detail number-text" });
  const row = chipRow(data, "difference of the two models", show);
  const low = element("span");
  const high = element("span");
  panel.append(
    row.node,
    element(
      "p",
      { class: "scale" },
      low,
      element("span", { class: "ramp effect" }),
      high,
      element("span", { class: "quiet" }, "change of the log-probability"),
    ),
    said,
  );

  function values() {
    const [before, after] = [a, b].map((model) => atFrame(model, "logprob").values);
    return data.tokens.map((_, t) => (t > 0 ? after[t - 1] - before[t - 1] : 0));
  }
  function show(t) {
    const change = values()[t];
    said.replaceChildren(
      tokenText(ownText(data.tokens[t]), "token"),
      t === 0
        ? " is the first token, to which no model gives a probability."
        : ` ${signed(change)}: ${change >= 0 ? "B" : "A"} finds it more probable.`,
    );
  }
  return (now, before) => {
    if (now.frame !== before.frame) {
      const changes = values();
      const most = Math.max(...changes.map(Math.abs), 1e-6);
      low.textContent = signed(-most);
      high.textContent = signed(most);
      row.chips.forEach((chip, t) => {
        if (t > 0) paint(chip, effectColor(changes[t] / most));
        else unpaint(chip);
        chip.setAttribute("aria-label", `${visible(data.tokens[t].text)} ${signed(changes[t])}`);
      });
    }
    row.mark();
    show(now.token);
  };
}
