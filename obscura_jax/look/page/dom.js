// Elements of the page. Text always becomes a text node or an attribute, never markup.

const DRAWING = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Return an HTML element; `onclick` and similar attributes are listeners. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function drawing(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(DRAWING, tag), attributes, children);
}

/** Return a labeled menu whose options are [value, words]; `choose` receives the chosen value. */
export function menu(words, options, choose) {
  const list = element("select", { onchange: () => choose(list.value) });
  list.append(...options.map(([value, text]) => element("option", { value }, text)));
  return { node: element("label", { class: "menu" }, element("span", {}, words), list), list };
}

/** Return a row of radio buttons, of which one is on; `choose` receives the value of that one. */
export function choice(words, name, options, choose) {
  const inputs = options.map(([value, text], i) => {
    const input = element("input", { type: "radio", name, value, checked: i === 0 });
    input.addEventListener("change", () => choose(value));
    return element("label", {}, input, element("span", {}, text));
  });
  return element("fieldset", { class: "choice" }, element("legend", {}, words), ...inputs);
}

/**
 * Scroll `box` until `node`, inside it, is visible; nothing else on the page moves.
 *
 * `covered` is how many pixels of the box other elements cover: {left, top, bottom}.
 */
export function reveal(box, node, { left = 0, top = 0, bottom = 0 } = {}) {
  const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
  const start = outer.left + left;
  const over = outer.top + top;
  const under = outer.top + box.clientHeight - bottom;
  if (inner.left < start) box.scrollLeft -= start - inner.left;
  else if (inner.right > outer.right) box.scrollLeft += inner.right - outer.right;
  if (inner.top < over) box.scrollTop -= over - inner.top;
  else if (inner.bottom > under) box.scrollTop += inner.bottom - under;
}
