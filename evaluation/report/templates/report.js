"use strict";
// Common to all pages: dark and light theme, sortable tables, hints at hidden columns, expanded sections for printing.
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });

  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  const makeSortable = (table) => {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const rows = [...body.rows].sort((first, second) => {
          const a = value(first, column), b = value(second, column);
          if (a === null || b === null) return (a === null) - (b === null);
          return falling ? compare(b, a) : compare(a, b);
        });
        body.append(...rows);
      });
    });
  };
  document.querySelectorAll("table.sortable").forEach(makeSortable);

  for (const box of document.querySelectorAll(".scroll")) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.hidden = true; // Until the table is laid out, nobody knows; a hint that comes and goes disturbs.
    hint.textContent = "More columns: scroll the table sideways →";
    box.before(hint);
    new ResizeObserver(() => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; }).observe(box);
  }

  addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details:not(.unprinted)")) folded.open = true; });
})();
