// A list of tokens with a bar for the probability of each.

import { element } from "./dom.js";
import { percent, visible } from "./words.js";

/**
 * Return a list with room for `count` tokens, so that nothing moves when they change.
 *
 * Its function `update` receives, for each token, its text and probability, and optionally the
 * probability `was`, drawn as an outline, whether it is the `target`, which has the color of the
 * selection, and whether it is `out` of the choice. A bar of probability `most` has the full width.
 */
export function barList(label, count) {
  const rows = Array.from({ length: count }, () => {
    const text = element("bdi", { dir: "auto", class: "token" });
    const was = element("span", { class: "was" });
    const bar = element("span", { class: "bar" });
    const number = element("span", { class: "number" });
    const track = element("span", { class: "track", "aria-hidden": "true" }, was, bar);
    return { text, was, bar, number, node: element("li", {}, text, track, number) };
  });
  const node = element(
    "ol",
    { class: "bars", "aria-label": label },
    ...rows.map((row) => row.node),
  );

  function update(tokens, most = 1) {
    const width = (p) => `${Math.min(100, (100 * p) / most).toFixed(2)}%`;
    rows.forEach((row, i) => {
      const token = tokens[i];
      row.node.classList.toggle("empty", !token);
      row.node.classList.toggle("out", Boolean(token?.out));
      row.node.classList.toggle("target", Boolean(token?.target));
      row.text.textContent = token ? visible(token.text) : "";
      row.number.textContent = token ? (token.out ? "—" : percent(token.probability)) : "";
      row.bar.style.width = width(token && !token.out ? token.probability : 0);
      row.was.style.width = width(token?.was ?? 0);
    });
  }
  return { node, update };
}
