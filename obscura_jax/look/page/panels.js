// One panel for each model, side by side; stacked where there is no room.

import { element } from "./dom.js";
import { follow } from "./state.js";

/** Return the name that tells two models apart: A and B, since both files may have one name. */
export function modelName(models, m) {
  return models.length > 1 ? `${"AB"[m]} · ${models[m].name}` : models[m].name;
}

/**
 * Add a panel per model to a view.
 *
 * `build` receives a panel, a model and its index, and returns a function that shows a selection;
 * it is called at once, and after each change with the selection before it.
 */
export function panels(body, models, build) {
  const row = element("div", { class: "panels", "data-count": models.length });
  body.append(row);
  models.forEach((model, m) => {
    const panel = element("div", { class: "panel" });
    if (models.length > 1) panel.append(element("h3", {}, modelName(models, m)));
    row.append(panel);
    const update = build(panel, model, m);
    follow((state, before) => {
      panel.hidden = state.model !== null && state.model !== m;
      row.classList.toggle("one", state.model !== null);
      update(state, before);
    });
  });
}

/** Add a panel with the difference of two models, which is hidden while only one is shown. */
export function differencePanel(body, models, title, build) {
  const panel = element("div", { class: "panel difference" }, element("h3", {}, title));
  body.append(panel);
  const update = build(panel);
  follow((state, before) => {
    panel.hidden = state.model !== null;
    update(state, before);
  });
}
