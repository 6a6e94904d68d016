// A served page: a field for a text, whose answer the views show as soon as it is there.

import { element } from "./dom.js";
import { show, showAblations } from "./main.js";

const PAUSE = 250; // milliseconds without typing, after which a text is sent
let asked = 0;
let waiting = null;

const field = element("textarea", { id: "live-text", rows: 2, spellcheck: "false", dir: "auto", oninput: later });
const status = element("p", { class: "live-status number-text", role: "status" });

/** Send a question and return the answer. */
async function answerTo(what, text) {
  const how = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text }) };
  const response = await fetch(what, how);
  if (response.status === 409) throw new Error("Another page asked meanwhile; change the text to ask again.");
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function later() {
  clearTimeout(waiting);
  waiting = setTimeout(() => ask(field.value, true), PAUSE);
}

/** Show the answer for a text, then the ablations, unless the text has changed by then. */
async function ask(text, isNew) {
  const question = ++asked;
  const isCurrent = () => question === asked;
  const say = (words) => isCurrent() && status.replaceChildren(words);
  try {
    if (isNew) {
      say("computing…");
      const data = await answerTo("look", text);
      if (!isCurrent()) return;
      await show(data);
    }
    say("computing the ablations…");
    const ablations = await answerTo("ablations", text);
    if (isCurrent()) await showAblations(ablations);
    say("");
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer; start obscura look --serve again." : error.message);
  }
}

const first = JSON.parse(document.getElementById("look-data").textContent);
field.value = first.served_text;
document.getElementById("live").append(
  element("label", { for: "live-text", class: "quiet" }, "Text"), field, status);
ask(field.value, false);
