// Arrays of the data: stored as base64 of gzip, read once into typed arrays that know their shape.

const KINDS = {
  float32: Float32Array,
  int32: Int32Array,
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
};

class Numbers {
  constructor(shape, values) {
    this.shape = shape;
    this.values = values;
  }

  /** Return the number at an index of every axis. */
  at(...index) {
    return this.values[index.reduce((flat, i, axis) => flat * this.shape[axis] + i, 0)];
  }

  /** Return a view of the numbers at an index of the first axes, in order. */
  under(...index) {
    const size = this.shape.slice(index.length).reduce((a, b) => a * b, 1);
    const start = index.reduce((flat, i, axis) => flat * this.shape[axis] + i, 0) * size;
    return this.values.subarray(start, start + size);
  }
}

async function numbers({ dtype, shape, data }) {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Numbers(shape, new KINDS[dtype](await new Response(stream).arrayBuffer()));
}

/** Return the value with every stored array in it replaced by its numbers. */
export async function unpack(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpack));
  if (value === null || typeof value !== "object") return value;
  if ("dtype" in value && "shape" in value && "data" in value) return numbers(value);
  const pairs = Object.entries(value).map(async ([name, part]) => [name, await unpack(part)]);
  return Object.fromEntries(await Promise.all(pairs));
}
