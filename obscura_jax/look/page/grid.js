// Cells in rows and columns, of which one is selected; arrow keys, the mouse and touch select.

import { element, reveal } from "./dom.js";

const MOVES = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [1, 0],
  ArrowDown: [-1, 0],
  Home: [0, -Infinity],
  End: [0, Infinity],
};

/** Return the change of row (upward) and column for a key, or null. */
export function moveOf(event) {
  return event.altKey || event.ctrlKey || event.metaKey ? null : (MOVES[event.key] ?? null);
}

/**
 * Return a table of cells; row 0 is at the bottom if `upward`, else at the top.
 *
 * `rowHead`, `columnHead` and, optionally, `topHead` return what to write at a row or column.
 * `pick` and `hover` receive a row and a column; `hover` receives nothing when the mouse leaves.
 */
export function grid({
  label,
  rows,
  columns,
  rowHead,
  columnHead,
  topHead,
  pick,
  hover,
  upward = true,
}) {
  const cells = Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => {
      const cell = element("td", { role: "gridcell", tabindex: -1 });
      cell.at = [row, column];
      return cell;
    }),
  );
  const heads = (head, corner) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", class: "corner" }, corner),
      ...Array.from({ length: columns }, (_, column) =>
        element("th", { scope: "col" }, head(column)),
      ),
    );
  const body = cells.map((line, row) =>
    element("tr", {}, element("th", { scope: "row" }, rowHead(row)), ...line),
  );
  const table = element(
    "table",
    { role: "grid", "aria-label": label, class: "grid" },
    topHead ? element("thead", {}, heads(topHead, topHead.corner ?? "")) : "",
    element("tbody", {}, ...(upward ? body.reverse() : body)),
    element("tfoot", {}, heads(columnHead, columnHead.corner ?? "")),
  );
  const node = element("div", { class: "scroll" }, table);
  let marked = null;

  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (cell) pick(...cell.at);
  });
  table.addEventListener("keydown", (event) => {
    const move = moveOf(event);
    const cell = event.target.closest("td");
    if (!move || !cell) return;
    event.preventDefault();
    const within = (x, count) => Math.min(Math.max(x, 0), count - 1);
    const [row, column] = [
      within(cell.at[0] + (upward ? 1 : -1) * move[0], rows),
      within(cell.at[1] + move[1], columns),
    ];
    pick(row, column);
    cells[row][column].focus();
  });
  if (hover) {
    table.addEventListener("mouseover", (event) => {
      const cell = event.target.closest("td");
      if (cell) hover(...cell.at);
    });
    table.addEventListener("mouseleave", () => hover());
  }

  /** Mark a cell as selected. */
  function mark(row, column) {
    marked?.removeAttribute("aria-selected");
    marked?.setAttribute("tabindex", -1);
    marked = cells[row][column];
    marked.setAttribute("aria-selected", true);
    marked.setAttribute("tabindex", 0);
    reveal(node, marked, {
      left: table.querySelector("th").offsetWidth,
      top: table.tHead?.offsetHeight ?? 0,
      bottom: table.tFoot.offsetHeight,
    });
  }

  /** Call `paint` with every cell, its row and its column. */
  function each(paint) {
    cells.forEach((line, row) => line.forEach((cell, column) => paint(cell, row, column)));
  }

  return { node, table, mark, each };
}
