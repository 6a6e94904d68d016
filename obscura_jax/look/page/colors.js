// Color scales. Their stops are in style.css, light and dark, and differ in lightness, so that
// color-blind readers can tell them apart.

const STEPS = 256;
let scales = null;

function stops(names) {
  const style = getComputedStyle(document.documentElement);
  return names.map((name) => {
    const hex = parseInt(style.getPropertyValue(name).trim().slice(1), 16);
    return [hex >> 16, (hex >> 8) & 255, hex & 255];
  });
}

function between(points) {
  return Array.from({ length: STEPS }, (_, i) => {
    const where = (i / (STEPS - 1)) * (points.length - 1);
    const left = Math.min(Math.floor(where), points.length - 2);
    return points[left].map((c, k) => Math.round(c + (where - left) * (points[left + 1][k] - c)));
  });
}

function readScales() {
  const amount = between(
    stops(["--amount-0", "--amount-1", "--amount-2", "--amount-3", "--amount-4"]),
  );
  const effect = between(stops(["--against-2", "--against-1", "--neutral", "--for-1", "--for-2"]));
  return { amount, effect };
}

function color(kind, x) {
  scales ??= readScales();
  const i = Math.round(Math.min(Math.max(x, 0), 1) * (STEPS - 1));
  return scales[kind][Number.isNaN(i) ? 0 : i];
}

/** Return red, green and blue for an amount from 0 to 1. */
export const amountColor = (x) => color("amount", x);

/** Return red, green and blue for an effect from -1 (against) to 1 (for). */
export const effectColor = (x) => color("effect", (x + 1) / 2);

/** Return where a log-probability is on the scale of amounts: 0.01% and less are at 0. */
export const amountOf = (logprob) => 1 + logprob / Math.log(1e4);

function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c <= 10 ? c / 3295 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Color an element, and its text black or white, whichever has more contrast. */
export function paint(node, rgb) {
  node.style.backgroundColor = `rgb(${rgb.join(" ")})`;
  node.style.color = luminance(rgb) > 0.18 ? "#000" : "#fff";
}

/** Remove the color of an element. */
export function unpaint(node) {
  node.style.backgroundColor = node.style.color = "";
}

/** Call `repaint` when the reader changes between light and dark. */
export function onTheme(repaint) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    scales = null;
    repaint();
  });
}
