// View: the distribution of the next token, and what the settings of sampling make of it.

import { barList } from "./bars.js";
import { element } from "./dom.js";
import { filtered } from "./filters.js";
import { panels } from "./panels.js";
import { state } from "./state.js";
import { ownText, percent, tokenText, whole } from "./words.js";

const SHOWN = 20;
// Kept when other data is shown.
const settings = { temperature: 1, topK: null, topP: null, minP: null };

export const nextTokenView = {
  id: "next",
  title: "Next token",
  says:
    "What the model would say after the selected token. The settings work as in obscura " +
    "generate, in this order: temperature, top-k, top-p, min-p. An outline shows the " +
    "probability without them.",
  functions: ["next"],
  ofLastFrame: true,
  build(body, data) {
    const updates = [];
    body.append(sliders(data, () => updates.forEach((update) => update())));
    panels(body, data.models, (panel, model) => {
      const update = onePanel(panel, data, model);
      updates.push(update);
      return (now, before) => now.token !== before.token && update();
    });
  },
};

/** Return the values of the top-k slider: every small one, then steps, the last one, and off. */
function choicesOfK(most) {
  const all = Array.from({ length: most }, (_, i) => i + 1);
  const step = (k) => (k <= 20 ? 1 : k <= 50 ? 5 : k <= 100 ? 10 : 25);
  return [...all.filter((k) => k % step(k) === 0 || k === most), null];
}

function sliders(data, changed) {
  const most = Math.min(...data.models.map((model) => model.next.ids.shape[1]));
  const sizes = choicesOfK(most);
  const node = element("form", { class: "sliders", "aria-label": "settings of sampling" });
  node.addEventListener("submit", (event) => event.preventDefault());

  function slider(name, words, range, toValue, toText, help) {
    const output = element("output", { class: "number" });
    const input = element("input", { type: "range", ...range, id: `set-${name}` });
    const first = input.value;
    function apply() {
      settings[name] = toValue(Number(input.value));
      output.textContent = toText(settings[name]);
      input.setAttribute("aria-valuetext", output.textContent);
    }
    input.addEventListener("input", () => {
      apply();
      changed();
    });
    node.addEventListener("reset", () => {
      input.value = first;
      apply();
    });
    node.append(
      element(
        "div",
        { class: "slider" },
        element("label", { for: `set-${name}` }, words, output),
        input,
        element("small", {}, help),
      ),
    );
    return (value) => {
      input.value = value;
      apply();
    };
  }
  const keep = { ...settings };
  slider(
    "temperature",
    "temperature",
    { min: 0, max: 2, step: 0.05, value: 1 },
    (x) => x,
    (x) => (x === 0 ? "0 (greedy)" : x.toFixed(2)),
    "below 1: bolder; above 1: more varied",
  )(keep.temperature);
  slider(
    "topK",
    "top-k",
    { min: 0, max: sizes.length - 1, step: 1, value: sizes.length - 1 },
    (i) => sizes[i],
    (k) => (k === null ? "off" : `${k}`),
    "keep the k most probable",
  )(sizes.includes(keep.topK) ? sizes.indexOf(keep.topK) : sizes.length - 1);
  slider(
    "topP",
    "top-p",
    { min: 0.01, max: 1, step: 0.01, value: 1 },
    (p) => (p === 1 ? null : p),
    (p) => (p === null ? "off" : p.toFixed(2)),
    "keep the fewest that reach p together",
  )(keep.topP ?? 1);
  slider(
    "minP",
    "min-p",
    { min: 0, max: 0.99, step: 0.01, value: 0 },
    (p) => (p === 0 ? null : p),
    (p) => (p === null ? "off" : p.toFixed(2)),
    "keep those p times as probable as the first",
  )(keep.minP ?? 0);
  node.append(element("button", { type: "reset" }, "reset"));
  node.addEventListener("reset", () => changed());
  return node;
}

function tailOf(model, t) {
  const { low, width, counts } = model.next.tail;
  const logits = model.next.logits.under(t);
  const stored = logits.reduce((sum, logit) => sum + Math.exp(logit - logits[0]), 0);
  const first = model.lens.probs.at(model.layers, t, 0); // the probability of the first
  return { low: low.values[t], width, counts: counts.under(t), weight: 1 / first - stored };
}

function onePanel(panel, data, model) {
  const count = Math.min(SHOWN, model.next.ids.shape[1]);
  const heading = element("p", { class: "number-text after" });
  const kept = element("output", { class: "quiet number-text kept" });
  const bars = barList("the most probable next tokens", count);
  const rest = element("p", { class: "quiet number-text rest" });
  panel.append(heading, kept, bars.node, rest);

  return () => {
    const t = state.token;
    const ids = model.next.ids.under(t);
    const logits = model.next.logits.under(t);
    const tail = tailOf(model, t);
    const plain = filtered(logits, tail, { temperature: 1 });
    const chosen = filtered(logits, tail, settings);
    const last = t === data.tokens.length - 1;
    bars.update(
      Array.from(ids.subarray(0, count), (id, i) => ({
        text: data.texts[id],
        probability: chosen.probs[i],
        was: plain.probs[i],
        out: !chosen.kept[i],
        target: !last && id === model.target[t],
      })),
      Math.max(chosen.probs[0], plain.probs[0]),
    );
    heading.replaceChildren(
      "after ",
      tokenText(ownText(data.tokens[t])),
      ` (position ${t})`,
      ...(last
        ? ["; the text ends here"]
        : ["; the text has ", tokenText(ownText(data.tokens[t + 1]), "token target")]),
    );
    const number = chosen.kept.filter(Boolean).length + chosen.tailKept;
    kept.textContent = `${whole(number)} of ${whole(model.vocab_size)} tokens kept`;
    const others = number - chosen.kept.slice(0, count).filter(Boolean).length;
    const share = chosen.probs.slice(count).reduce((a, b) => a + b, chosen.tailProb);
    rest.textContent = others > 0 ? `${whole(others)} more kept: ${percent(share)} together` : "";
  };
}
