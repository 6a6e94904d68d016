// The filters of obscura_jax/decoding/filters.py, in the same order and with the same rounding:
// temperature, top-k, top-p, min-p, each on what the one before kept.
//
// The most probable tokens have exact logits. The others, the tail, are counted in bins of logits:
// a bin is treated as that many equal tokens near its middle.

const { fround } = Math;

/** Return the greatest power of two that is at most x. */
const powerOfTwo = (x) => 2 ** Math.floor(Math.log2(x));

function roundToEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

/** Return the tail's bins, highest first: a logit, less the largest, over temperature; a count. */
function binsOf(tail, largest, temperature) {
  const middle = (b) => tail.low + (b + 0.5) * tail.width - largest;
  const weight = tail.counts.reduce((sum, count, b) => sum + count * Math.exp(middle(b)), 0);
  // All bins move by one amount, so that together they weigh what the tail weighs at temperature 1.
  const shift = Math.log(tail.weight / weight) || 0;
  const within = Math.min(Math.max(shift, -tail.width / 2), tail.width / 2);
  return Array.from(tail.counts, (count, b) => ({
    logit: (middle(b) + within) / temperature,
    count,
  }))
    .filter((bin) => bin.count > 0)
    .reverse();
}

function keepTopK(logits, kept, bins, k) {
  const last = logits[k - 1];
  logits.forEach((logit, i) => (kept[i] &&= logit >= last));
  bins.length = 0;
}

function keepTopP(logits, kept, bins, p) {
  const weights = Array.from(logits, (logit, i) => (kept[i] ? fround(Math.exp(logit)) : 0));
  const tailWeights = bins.map((bin) => Math.exp(bin.logit));
  const sum =
    weights.reduce((a, b) => a + b, 0) +
    bins.reduce((a, bin, b) => a + bin.count * tailWeights[b], 0);
  // The package sums probabilities as integers, whose unit is the same in any batch.
  const unit = powerOfTwo(fround(sum)) / 2 ** 30;
  const mass = weights.map((weight) => roundToEven(weight / unit));
  const tailMass = tailWeights.map((weight) => roundToEven(weight / unit));
  const total =
    mass.reduce((a, b) => a + b, 0) + bins.reduce((a, bin, b) => a + bin.count * tailMass[b], 0);
  const wanted = Math.ceil(fround(fround(p) * fround(total)));
  const enough = Math.min(Math.max(wanted, 1), total);

  let reached = 0;
  for (let i = 0; i < logits.length && kept[i]; i++) {
    reached += mass[i];
    const tied = i + 1 < logits.length && kept[i + 1] && logits[i + 1] === logits[i];
    if (tied || reached < enough) continue;
    kept.fill(false, i + 1);
    bins.length = 0;
    return;
  }
  for (let b = 0; b < bins.length; b++) {
    const all = bins[b].count * tailMass[b];
    if (reached + all < enough) {
      reached += all;
      continue;
    }
    bins[b].count = Math.ceil((enough - reached) / tailMass[b]);
    bins.length = b + 1;
  }
}

function keepMinP(logits, kept, bins, p) {
  const least = fround(Math.log(fround(p)));
  logits.forEach((logit, i) => (kept[i] &&= !(logit < least)));
  const count = bins.findIndex((bin) => bin.logit < least);
  if (count >= 0) bins.length = count;
}

/**
 * Return which tokens the settings keep, and the probabilities to choose from.
 *
 * @param logits  of the most probable tokens, highest first (float32)
 * @param tail    of the other tokens: {low, width, counts, weight}; counts[b] have a logit from
 *                low + b * width to low + (b + 1) * width, and together they are `weight` times as
 *                probable as the first token
 * @param settings  {temperature, topK, topP, minP}; temperature 0 takes the most probable token,
 *                and null turns a filter off
 * @returns {kept, tailKept, probs, tailProb}: whether each of `logits` is kept; how many of the
 *                tail are; the probabilities of the former; the sum of those of the latter
 */
export function filtered(logits, tail, { temperature, topK = null, topP = null, minP = null }) {
  const kept = new Array(logits.length).fill(true);
  if (temperature === 0) {
    const probs = kept.map((_, i) => Number(i === 0));
    return { kept: kept.fill(false, 1), tailKept: 0, probs, tailProb: 0 };
  }
  const scaled = Float32Array.from(logits, (x) => fround(x - logits[0]) / fround(temperature));
  const bins = binsOf(tail, logits[0], temperature);
  if (topK !== null && topK <= logits.length) keepTopK(scaled, kept, bins, topK);
  if (topP !== null && topP < 1) keepTopP(scaled, kept, bins, topP);
  if (minP !== null && minP > 0) keepMinP(scaled, kept, bins, minP);

  const weights = Array.from(scaled, (x, i) => (kept[i] ? Math.exp(x) : 0));
  const inTail = bins.reduce((sum, bin) => sum + bin.count * Math.exp(bin.logit), 0);
  const sum = weights.reduce((a, b) => a + b, inTail);
  return {
    kept,
    tailKept: bins.reduce((count, bin) => count + bin.count, 0),
    probs: weights.map((weight) => weight / sum),
    tailProb: inTail / sum,
  };
}
