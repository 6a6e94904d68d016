// What is selected: it links all views, and the address of the page keeps it (#t=3&l=1&h=2).

const LETTERS = { t: "token", l: "layer", h: "head", m: "model", f: "frame" };
const followers = [];
let ranges = {};
let textShown = null;

/**
 * The selection: the position of a token; a layer (a block from 0, or -1 for the embeddings); a
 * head; a model (null: all); and a frame, a moment of training.
 */
export const state = { token: 0, layer: 0, head: 0, model: null, frame: 0 };

/**
 * Call `update` now, and after each change of the selection: with the selection, and with the one
 * before it, which is empty if everything must be drawn.
 */
export function follow(update) {
  followers.push(update);
  update(state, {});
}

/** Draw everything again, as after a change of colors. */
export function drawAgain() {
  for (const update of followers) update(state, {});
}

/** Change parts of the selection; a number outside its range becomes the nearest inside it. */
export function select(changes) {
  const before = { ...state };
  for (const [name, value] of Object.entries(changes)) {
    const [low, high] = ranges[name];
    state[name] = value === null ? null : Math.min(Math.max(value, low), high);
  }
  history.replaceState(null, "", address());
  for (const update of followers) update(state, before);
}

/** Begin with new data: nothing follows, and the address of the page says what is selected. */
export function begin(data) {
  followers.length = 0;
  const { tokens, models } = data;
  const most = (count) => Math.max(...models.map(count)) - 1;
  ranges = {
    token: [0, tokens.length - 1],
    layer: [-1, most((model) => model.layers)],
    head: [0, most((model) => model.heads)],
    model: [0, models.length - 1],
    frame: [0, most((model) => model.frames?.length ?? 1)],
  };
  const last = (name) => ranges[name][1];
  Object.assign(state, { token: last("token"), layer: last("layer"), head: 0, model: null });
  Object.assign(state, { frame: last("frame") }, fromAddress());
  const text = tokens.map((token) => token.id).join();
  if (textShown !== null && text !== textShown) state.token = last("token"); // of another text
  textShown = text;
}

/** Return the parts of the selection that the address names, without those out of range. */
export function fromAddress() {
  const found = {};
  for (const part of location.hash.slice(1).split("&")) {
    const [, letter, digits] = part.match(/^([tlhmf])=(-?\d{1,6})$/) ?? [];
    const name = LETTERS[letter];
    if (!name) continue;
    const [low, high] = ranges[name];
    if (Number(digits) >= low && Number(digits) <= high) found[name] = Number(digits);
  }
  if (ranges.model[1] === 0) delete found.model;
  return found;
}

function address() {
  const parts = Object.entries(LETTERS).filter(([, name]) => {
    return state[name] !== null && (name !== "frame" || ranges.frame[1] > 0);
  });
  return `#${parts.map(([letter, name]) => `${letter}=${state[name]}`).join("&")}`;
}

/** Return the selected block of a model, which may have fewer than another; the first if none. */
export const blockOf = (model) => Math.min(Math.max(state.layer, 0), model.layers - 1);

/** Return the selected layer of a model: -1 for the embeddings. */
export const layerOf = (model) => Math.min(state.layer, model.layers - 1);

/** Return the selected head of a model. */
export const headOf = (model) => Math.min(state.head, model.heads - 1);

/** Return a part of a model at the selected frame: the model's own if frames do not store it. */
export function atFrame(model, part) {
  const frames = model.frames ?? [];
  return frames[Math.min(state.frame, frames.length - 1)]?.[part] ?? model[part];
}
