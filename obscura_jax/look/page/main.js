// The page: reads the data, builds every view, and keeps them on one selection.

import { ablationView } from "./ablation.js";
import { attentionView } from "./attention.js";
import { onTheme } from "./colors.js";
import { contributionsView } from "./contributions.js";
import { element } from "./dom.js";
import { lensView } from "./lens.js";
import { nextTokenView } from "./next_token.js";
import { modelName } from "./panels.js";
import { selectionBar } from "./selection_bar.js";
import { begin, drawAgain, follow, fromAddress, select } from "./state.js";
import { tokensView } from "./tokens.js";
import { unpack } from "./unpack.js";
import { whole } from "./words.js";

const FORMAT = "obscura-look";
const VERSION = 1;
const VIEWS = [tokensView, nextTokenView, lensView, attentionView, ablationView, contributionsView];
let newest = 0;
let shown = null; // the data that the page shows

/** Show other data in place of what the page shows; if called twice, the later call wins. */
export async function show(packed) {
  const call = ++newest;
  const refusal = whyNot(packed);
  const data = refusal ? null : await unpack(packed);
  if (call !== newest) return;
  const views = document.getElementById("views");
  const bar = document.getElementById("selection");
  bar.hidden = Boolean(refusal);
  if (refusal) {
    views.replaceChildren(element("p", { class: "refusal", role: "alert" }, refusal));
    return;
  }
  const height = scrollY;
  shown = data;
  begin(data);
  document.getElementById("facts").replaceChildren(...facts(data));
  document.title = `obscura look: ${data.models.map((model) => model.name).join(" and ")}`;
  selectionBar(bar, data);
  const sections = VIEWS.map(section);
  views.replaceChildren(...sections.map(({ node }) => node));
  sections.forEach(({ view, node, body }) => {
    view.build(body, data);
    node.append(computedBy(view, data));
  });
  scrollTo(0, height);
  document.documentElement.dataset.ready = call;
}

/** Show ablations that were computed after the data of the page: one entry per model. */
export async function showAblations(packed) {
  const call = newest;
  const entries = await unpack(packed);
  if (call !== newest) return;
  shown.models.forEach((model, m) => (model.ablation = entries[m]));
  const body = document.querySelector(`#${ablationView.id} .body`);
  body.replaceChildren();
  ablationView.build(body, shown);
}

function whyNot(packed) {
  if (packed?.format !== FORMAT)
    return "This page has no data of obscura look; make it again with obscura look.";
  if (packed.version === VERSION) return "";
  return (
    `This page shows data of version ${VERSION}, but its data has version ${packed.version}; ` +
    "make it again with one version of obscura_jax."
  );
}

function section(view) {
  const body = element("div", { class: "body" });
  const note = element(
    "p",
    { class: "note-last", hidden: true },
    "This view shows the last step of training.",
  );
  const node = element(
    "section",
    { id: view.id, "aria-labelledby": `${view.id}-title` },
    element("h2", { id: `${view.id}-title` }, view.title),
    element("p", { class: "lead" }, view.says),
    view.ofLastFrame ? note : "",
    body,
  );
  const last = (models) => Math.max(...models.map((model) => model.frames?.length ?? 1)) - 1;
  const build = (at, data) => {
    view.build(at, data);
    if (view.ofLastFrame && last(data.models) > 0) {
      follow((now) => (note.hidden = now.frame === last(data.models)));
    }
  };
  return { view: { ...view, build }, node, body };
}

function computedBy(view, data) {
  const names = view.functions.map((name) => data.functions[name]).filter(Boolean);
  if (names.length === 0) return "";
  return element(
    "p",
    { class: "computed" },
    "computed by ",
    ...names.flatMap((name, i) => [i ? " and " : "", element("code", {}, name)]),
  );
}

function facts(data) {
  return data.models.map((model, m) =>
    element(
      "p",
      { class: "number-text" },
      element("strong", {}, modelName(data.models, m)),
      ` ${model.layers} blocks × ${model.heads} heads · width ${model.width} · ` +
        `vocabulary ${whole(model.vocab_size)} · context ${model.context} · ${model.dtype}`,
    ),
  );
}

onTheme(drawAgain);
addEventListener("hashchange", () => select(fromAddress()));
show(JSON.parse(document.getElementById("look-data").textContent));
