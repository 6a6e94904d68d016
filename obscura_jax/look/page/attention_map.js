// Drawings of attention: a map of one head, a row per token that reads and a column per token read.

import { amountColor } from "./colors.js";

const MOST = 96; // pixels along a side of a small map

/** Return how strongly to color a weight (0 to 255): its square root, so that small ones show. */
const strength = (weight) => Math.sqrt(weight / 255);

/**
 * Draw the weights (T x T, from 0 to 255) of a head, one pixel each.
 *
 * In a map of at most `most` pixels along a side, a pixel has the largest of several weights, so
 * that a line one token wide stays visible.
 */
export function drawMap(canvas, weights, count, most = MOST) {
  const group = Math.max(1, Math.ceil(count / most));
  const size = Math.ceil(count / group);
  const largest = new Uint8Array(size * size);
  for (let query = 0; query < count; query++) {
    const line = Math.floor(query / group) * size;
    for (let key = 0; key <= query; key++) {
      const at = line + Math.floor(key / group);
      largest[at] = Math.max(largest[at], weights[query * count + key]);
    }
  }
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  largest.forEach((weight, i) => {
    const above = i % size > Math.floor(i / size); // no token reads what comes after it
    image.data.set([...amountColor(strength(weight)), above ? 0 : 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}
