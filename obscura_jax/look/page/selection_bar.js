// The bar that stays in sight: what is selected, and menus and buttons to change it.

import { choice, element, menu } from "./dom.js";
import { modelName } from "./panels.js";
import { follow, select, state } from "./state.js";
import { ownText, tokenText, whole } from "./words.js";

const PACE = 800; // milliseconds per frame

/** Fill the bar for new data. */
export function selectionBar(bar, data) {
  const { tokens, models } = data;
  const most = (count) => Math.max(...models.map(count));
  const upTo = (count, words) => Array.from({ length: count }, (_, i) => [i, words(i)]);
  const step = (words, sign, by) =>
    element(
      "button",
      { type: "button", "aria-label": words, onclick: () => select({ token: state.token + by }) },
      sign,
    );
  const before = step("token before", "‹", -1);
  const after = step("token after", "›", 1);
  const name = element("span", { class: "current" });
  const at = element("span", { class: "quiet number-text" });
  const layer = menu(
    "layer",
    [
      [-1, "embeddings"],
      ...upTo(
        most((m) => m.layers),
        (i) => `block ${i}`,
      ),
    ],
    (value) => select({ layer: Number(value) }),
  );
  const head = menu(
    "head",
    upTo(
      most((m) => m.heads),
      (i) => `head ${i}`,
    ),
    (value) => select({ head: Number(value) }),
  );
  bar.replaceChildren(
    element("div", { class: "which" }, before, name, after, at),
    element("div", { class: "which" }, layer.node, head.node),
  );
  if (models.length > 1) {
    const options = [["both", "both"], ...models.map((_, m) => [`${m}`, modelName(models, m)])];
    const pick = choice("models", "models", options, (value) =>
      select({ model: value === "both" ? null : Number(value) }),
    );
    bar.append(pick);
    follow((now) => {
      pick.querySelector(`[value="${now.model ?? "both"}"]`).checked = true;
    });
  }
  const frames = models.find((model) => (model.frames?.length ?? 0) > 1)?.frames;
  if (frames) bar.append(frameSlider(frames));
  follow((now) => {
    name.replaceChildren(tokenText(ownText(tokens[now.token])));
    at.textContent = `position ${now.token}`;
    before.disabled = now.token === 0;
    after.disabled = now.token === tokens.length - 1;
    layer.list.value = now.layer;
    head.list.value = now.head;
  });
}

let playing = null;

function stop() {
  clearInterval(playing);
  playing = null;
}

function frameSlider(frames) {
  stop();
  const last = frames.length - 1;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const slider = element("input", {
    type: "range",
    min: 0,
    max: last,
    step: 1,
    "aria-label": "step of training",
  });
  const words = element("output", { class: "number-text" });
  const play = element("button", { type: "button", class: "play" });

  function draw() {
    play.textContent = playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", playing ? "pause" : calm.matches ? "next step" : "play");
  }
  function advance() {
    select({ frame: state.frame + 1 });
    if (state.frame === last) stop();
    draw();
  }
  play.addEventListener("click", () => {
    if (playing) stop();
    else {
      if (state.frame === last) select({ frame: 0 });
      else if (calm.matches) advance(); // no movement without a click
      if (!calm.matches) playing = setInterval(advance, PACE);
    }
    draw();
  });
  slider.addEventListener("input", () => {
    stop();
    select({ frame: Number(slider.value) });
    draw();
  });
  follow((now) => {
    slider.value = now.frame;
    const step = frames[Math.min(now.frame, last)].step;
    words.textContent = `step ${whole(step)}`;
    slider.setAttribute("aria-valuetext", words.textContent);
  });
  draw();
  return element("div", { class: "which frames" }, play, slider, words);
}
