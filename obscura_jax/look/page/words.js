// How the page writes tokens and numbers.

import { element } from "./dom.js";

const SHOWN = { " ": "·", "\u00a0": "⍽", "\n": "↵", "\r": "␍", "\t": "⇥", "\u007f": "␡" };
const RIGHT_TO_LEFT =
  /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;

/** Return a token's text with its white space and control characters visible. */
export function visible(text) {
  if (text === "") return "∅";
  if (/^[\p{Cf}\p{Mn}\u2028\u2029]+$/u.test(text)) {
    return [...text].map((c) => `U+${c.codePointAt(0).toString(16).toUpperCase()}`).join(" ");
  }
  return text.replace(/[\u0000-\u0020\u007f\u00a0]/g, (c) => {
    return SHOWN[c] ?? String.fromCharCode(0x2400 + c.charCodeAt(0));
  });
}

/** Return an element with a token's text, kept apart from the direction of what surrounds it. */
export function tokenText(text, kind = "token") {
  return element("bdi", { class: kind, dir: "auto" }, visible(text));
}

/** Return what to show for a token of the text: its bytes if they are not complete characters. */
export function ownText(token) {
  return token.text.includes("\ufffd") ? `‹${token.bytes}›` : token.text;
}

/** Return what to show for the token after a position: the model's choice where the text ends. */
export function following(data, model, t) {
  return t + 1 < data.tokens.length ? ownText(data.tokens[t + 1]) : data.texts[model.target[t]];
}

/** Return "rtl" if the first letter of a text is of a script written from right to left. */
export function direction(text) {
  const letter = text.match(/\p{L}/u);
  return letter && RIGHT_TO_LEFT.test(letter[0]) ? "rtl" : "ltr";
}

/** Return a probability as a percentage: "100%", "99.2%", "37%", "3.4%", "0.02%", "<0.01%". */
export function percent(probability) {
  const p = 100 * probability;
  if (p >= 99.95) return "100%";
  if (p >= 98.95 || (p < 9.95 && p >= 0.995)) return `${p.toFixed(1)}%`;
  if (p >= 9.95) return `${p.toFixed(0)}%`;
  if (p >= 0.01) return `${p.toFixed(2)}%`;
  return p > 0 ? "<0.01%" : "0%";
}

/** Return a number with two decimals and a true minus sign. */
export function decimal(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

/** Return a difference with its sign, such as "+0.12". */
export function signed(value, digits = 2) {
  const text = decimal(value, digits);
  return value > 0 && Number(text) !== 0 ? `+${text}` : text;
}

/** Return a whole number with commas, such as "50,257". */
export const whole = (number) => number.toLocaleString("en");

/** Return a rank for readers, who count from 1: "#1" is the most probable token. */
export function place(rank) {
  return `#${whole(rank + 1)}`;
}

/** Return the name of a layer: a block by its number, which counts from 0, or the embeddings. */
export function layerName(layer) {
  return layer < 0 ? "embeddings" : `block ${layer}`;
}
