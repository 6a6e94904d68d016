// A line of the residual stream's norm, layer by layer, at the selected token.

import { drawing, element } from "./dom.js";
import { layerOf, state } from "./state.js";
import { decimal, layerName } from "./words.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM] = [360, 180, 44, 24];

/** Return a chart of the norms, and the function that shows a selection. */
export function normChart(model) {
  const line = drawing("path", { class: "line" });
  const dots = drawing("g");
  const axis = drawing("g", { class: "axis" });
  const said = element("p", { class: "quiet number-text" });
  const figure = drawing(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    axis,
    line,
    dots,
  );
  const node = element(
    "figure",
    { class: "norms" },
    element("figcaption", {}, "Norm of the residual stream"),
    figure,
    said,
  );
  const layers = model.layers + 1;

  function show() {
    const norms = Array.from({ length: layers }, (_, row) =>
      model.residual.norm.at(row, state.token),
    );
    const most = Math.max(...norms, 1e-6);
    const x = (row) => LEFT + ((WIDTH - LEFT - 12) * row) / Math.max(layers - 1, 1);
    const y = (norm) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - 14) * norm) / most;
    const chosen = layerOf(model) + 1;
    line.setAttribute(
      "d",
      norms.map((norm, row) => `${row ? "L" : "M"} ${x(row)} ${y(norm)}`).join(" "),
    );
    dots.replaceChildren(
      ...norms.map((norm, row) =>
        drawing("circle", {
          cx: x(row),
          cy: y(norm),
          r: row === chosen ? 5 : layers > 30 ? 1.5 : 2.5,
          class: row === chosen ? "chosen" : "",
        }),
      ),
    );
    const text = (words, at, high, anchor) =>
      drawing("text", { x: at, y: high, "text-anchor": anchor }, words);
    axis.replaceChildren(
      drawing("path", {
        d: `M ${LEFT} ${y(0)} H ${WIDTH - 8} M ${LEFT} ${y(most)} H ${WIDTH - 8}`,
      }),
      text(decimal(most, 1), LEFT - 6, y(most) + 4, "end"),
      text("0", LEFT - 6, y(0) + 4, "end"),
      text("embeddings", LEFT, HEIGHT - 6, "start"),
      text(layerName(model.layers - 1), WIDTH - 8, HEIGHT - 6, "end"),
    );
    const where = `${chosen === 0 ? "" : "after "}${layerName(chosen - 1)}`;
    said.textContent = `${where}: ${decimal(norms[chosen], 1)}`;
    figure.setAttribute("aria-label", `norms: ${norms.map((norm) => decimal(norm, 1)).join(", ")}`);
  }
  return { node, show };
}
