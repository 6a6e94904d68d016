// One head, enlarged: its map with the tokens, and arcs from the selected token to what it reads.

import { drawMap } from "./attention_map.js";
import { drawing, element, reveal } from "./dom.js";
import { atFrame, blockOf, headOf, select, state } from "./state.js";
import { ownText, percent, tokenText } from "./words.js";

const ARCS = 110; // pixels of height
const LEAST = 0.01; // the weight of the thinnest arc
const LABELED = 32; // more tokens than this have no room for names at the map
const LISTED = 5;

/** Return the enlarged view of a model's selected head, and the function that shows a selection. */
export function headPanel(data, model) {
  const title = element("h4");
  const arcs = arcsOf(data);
  const reads = element("p", { class: "number-text reads" });
  const map = bigMap(data, model);
  const node = element("div", { class: "head" }, title, arcs.node, reads, map.node);

  function update() {
    const [block, head] = [blockOf(model), headOf(model)];
    const weights = atFrame(model, "attention").under(block, head);
    const count = data.tokens.length;
    const line = weights.subarray(state.token * count, (state.token + 1) * count);
    title.textContent = `Block ${block}, head ${head}`;
    arcs.show(line);
    map.show(weights);
    const most = Array.from(line, (weight, key) => ({ weight, key }))
      .filter(({ key, weight }) => key <= state.token && weight > 0)
      .sort((a, b) => b.weight - a.weight)
      .slice(0, LISTED);
    reads.replaceChildren(
      tokenText(ownText(data.tokens[state.token])),
      " reads ",
      ...most.flatMap(({ weight, key }, i) => [
        i ? ", " : "",
        tokenText(ownText(data.tokens[key])),
        ` ${percent(weight / 255)}`,
      ]),
    );
  }
  return { node, update };
}

/** Return the path of an arc between two positions along the line of tokens. */
function arc(from, to) {
  const top = ARCS - 1.3 * Math.min(ARCS - 8, 22 + 0.3 * (from - to));
  return `M ${from} ${ARCS} C ${from} ${top}, ${to} ${top}, ${to} ${ARCS}`;
}

/** Return the path of an arc from a token to itself. */
function loop(at) {
  const top = ARCS - 34;
  return `M ${at - 7} ${ARCS} C ${at - 16} ${top}, ${at + 16} ${top}, ${at + 7} ${ARCS}`;
}

function arcsOf(data) {
  const figure = drawing("svg", { class: "arcs", "aria-hidden": "true", height: ARCS });
  const names = data.tokens.map((token, t) => {
    const name = tokenText(ownText(token), "token");
    name.addEventListener("click", () => select({ token: t }));
    return name;
  });
  const row = element("div", { class: "arc-tokens" }, ...names);
  const node = element(
    "div",
    {
      class: "scroll arc-box",
      tabindex: 0,
      role: "group",
      "aria-label": "arcs from the selected token to the tokens that it reads",
    },
    element("div", { class: "arc-inside" }, figure, row),
  );

  function show(line) {
    const middle = names.map((name) => name.offsetLeft + name.offsetWidth / 2);
    const from = middle[state.token];
    figure.setAttribute("width", row.scrollWidth);
    const arcs = [];
    for (let key = 0; key <= state.token; key++) {
      const weight = line[key] / 255;
      names[key].style.opacity = 0.45 + 0.55 * Math.sqrt(weight);
      if (weight < LEAST) continue;
      const to = middle[key];
      const curve = key === state.token ? loop(from) : arc(from, to);
      arcs.push(
        drawing("path", {
          d: curve,
          "stroke-width": (0.8 + 8 * weight).toFixed(2),
          "stroke-opacity": (0.3 + 0.6 * weight).toFixed(2),
          "data-key": key,
        }),
      );
    }
    figure.replaceChildren(...arcs);
    names.forEach((name, t) => {
      name.classList.toggle("selected", t === state.token);
      if (t > state.token) name.style.opacity = 0.3;
    });
    reveal(node, names[state.token]);
  }
  return { node, show };
}

function bigMap(data, model) {
  const count = data.tokens.length;
  const labels = () => data.tokens.map((token) => tokenText(ownText(token)));
  const canvas = element("canvas", { "aria-hidden": "true" });
  const cursor = element("span", { class: "cursor", "aria-hidden": "true" });
  const square = element("div", { class: "square" }, canvas, cursor);
  const readout = element("p", { class: "quiet number-text readout" });
  const few = count <= LABELED;
  const node = element(
    "div",
    { class: "big-map" },
    element(
      "div",
      { class: few ? "labeled" : "plain" },
      few ? element("div", { class: "rows", "aria-hidden": "true" }, ...labels()) : "",
      square,
      few ? element("div", { class: "columns", "aria-hidden": "true" }, ...labels()) : "",
    ),
    readout,
    element(
      "p",
      { class: "scale", "aria-hidden": "true" },
      element("span", {}, "0%"),
      element("span", { class: "ramp amount" }),
      element("span", {}, "100%"),
      element("span", { class: "quiet" }, "weight, with 25% in the middle"),
    ),
  );

  node.style.setProperty("--count", count);

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    const along = (x, from, size) =>
      Math.min(Math.max(Math.floor((count * (x - from)) / size), 0), count - 1);
    return [along(event.clientY, box.top, box.height), along(event.clientX, box.left, box.width)];
  }
  function tell(query, key) {
    const weights = atFrame(model, "attention");
    const weight = weights.at(blockOf(model), headOf(model), query, key) / 255;
    readout.replaceChildren(
      tokenText(ownText(data.tokens[query])),
      ` (${query}) reads `,
      tokenText(ownText(data.tokens[key])),
      ` (${key}): ${key > query ? "comes later, never read" : percent(weight)}`,
    );
  }
  const quiet = () => {
    readout.textContent = "Point at the map to see a weight; click to select the token that reads.";
  };
  canvas.addEventListener("mousemove", (event) => tell(...placeOf(event)));
  canvas.addEventListener("mouseleave", quiet);
  canvas.addEventListener("click", (event) => select({ token: placeOf(event)[0] }));
  quiet();

  function show(weights) {
    drawMap(canvas, weights, count, Infinity);
    cursor.style.top = `${(100 * state.token) / count}%`;
    cursor.style.height = `${100 / count}%`;
  }
  return { node, show };
}
