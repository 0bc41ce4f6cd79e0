"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });

  const table = document.getElementById("subjects");
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].sort((first, second) => {
        const a = value(first, column), b = value(second, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return falling ? compare(b, a) : compare(a, b);
      });
      body.append(...rows);
    });
  });

  const controls = document.querySelector(".controls");
  const find = document.getElementById("find"), role = document.getElementById("role"), matches = document.getElementById("matches");
  controls.hidden = false;
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !(row.textContent.toLowerCase().includes(wanted) && (!role.value || row.dataset.role === role.value));
      shown += !row.hidden;
      const map = document.getElementById("map-" + row.cells[0].textContent.trim());
      if (map) map.hidden = row.hidden;
    }
    matches.textContent = shown + " of " + body.rows.length;
  };
  find.addEventListener("input", filter);
  role.addEventListener("change", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  filter();

  addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });
})();
