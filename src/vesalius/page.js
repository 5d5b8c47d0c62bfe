// Sorts a table.sortable by a column when its header is clicked or activated with the keyboard. Each tbody is sorted by
// itself, and a row whose first cell spans a group stays first. Missing values (–) come last in both directions.
"use strict";
const MISSING = "–", NUMBER = /^([<>]?)\s*([+−-]?\d+(?:\.\d+)?)(?![\w.])/;

function parse(text) {
  const found = NUMBER.exec(text);
  const nudge = { "<": -1e-9, ">": 1e-9 };
  return found && Number(found[2].replace("−", "-")) + (nudge[found[1]] || 0);
}

function sortRows(body, column, direction) {
  const rows = [...body.rows].filter(row => !row.querySelector("th[scope=rowgroup]"));
  const texts = new Map(rows.map(row => [row, row.cells[column].textContent.trim()]));
  const known = rows.filter(row => texts.get(row) !== MISSING);
  const numeric = known.every(row => parse(texts.get(row)) !== null);
  const compare = (one, other) => numeric ? parse(one) - parse(other) : one.localeCompare(other, undefined, { numeric: true });
  known.sort((one, other) => direction * compare(texts.get(one), texts.get(other)));
  body.append(...known, ...rows.filter(row => texts.get(row) === MISSING));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(each => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      for (const body of table.tBodies) sortRows(body, column, rising ? 1 : -1);
    });
  });
}
