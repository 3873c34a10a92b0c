// Sorts tables by a click on a header, filters the trials, and switches between light and dark. #sort=TABLE,COLUMN or
// #sort=TABLE,COLUMN,descending in the address sorts on load: an element's id, and the column from 0.
"use strict";

const NUMBER = /^[+-]?\d+(\.\d+)?/;

// what a cell is sorted by: a number where it starts with one, else its text
function keyOf(row, column) {
  const cell = row.cells[column];
  if (!cell) return "";
  const given = cell.dataset.v;
  if (given !== undefined) return given !== "" && isFinite(given) ? Number(given) : given;
  const text = cell.textContent.trim();
  const found = NUMBER.exec(text);
  return found ? Number(found[0]) : text;
}

// numbers before texts in either direction, so that what has no figure stays at the end
function compare(a, b, sign) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  if (typeof a === "number") return sign * (a - b);
  if ((a === "-") !== (b === "-")) return a === "-" ? 1 : -1;
  return sign * (a < b ? -1 : a > b ? 1 : 0);
}

function sortTable(table, column, direction) {
  for (const header of table.tHead.rows[table.tHead.rows.length - 1].cells) header.removeAttribute("aria-sort");
  if (direction !== "none") table.tHead.rows[table.tHead.rows.length - 1].cells[column].setAttribute("aria-sort", direction);
  const sign = direction === "descending" ? -1 : 1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.querySelector("th[colspan]"));
    rows.forEach((row, at) => { if (row.dataset.at === undefined) row.dataset.at = at; });
    const keyed = rows.map((row) => [direction === "none" ? 0 : keyOf(row, column), Number(row.dataset.at), row]);
    keyed.sort((a, b) => compare(a[0], b[0], sign) || a[1] - b[1]);
    body.append(...keyed.map((entry) => entry[2]));
  }
}

// first click: the greatest number or the first name on top; then the other way round; then as it was
function nextDirection(table, header, column) {
  const now = header.getAttribute("aria-sort");
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.querySelector("th[colspan]"));
  const first = rows.some((row) => typeof keyOf(row, column) === "number") ? "descending" : "ascending";
  if (!now) return first;
  return now === first ? (first === "descending" ? "ascending" : "descending") : "none";
}

function makeSortable(table) {
  const first = [...table.tBodies].flatMap((body) => [...body.rows]).find((row) => !row.querySelector("th[colspan]"));
  [...table.tHead.rows[table.tHead.rows.length - 1].cells].forEach((header, column) => {
    if (first && first.cells[column].tagName === "TH") header.classList.add("text");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortTable(table, column, nextDirection(table, header, column)));
  });
}

function makeFilter(input) {
  const table = document.getElementById(input.dataset.filters).querySelector("table");
  const count = input.parentElement.querySelector("output");
  const texts = new Map();
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      if (!texts.has(row)) texts.set(row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
      row.hidden = !words.every((word) => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
  });
}

function makeTheme(button) {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "light" : "dark"; };
  try {
    const kept = localStorage.getItem("lchp-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* some browsers keep nothing for files */ }
  label();
  button.hidden = false;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
    try { localStorage.setItem("lchp-theme", root.dataset.theme); } catch { /* as above */ }
  });
}

function sortByAddress() {
  const asked = /^#sort=([^,]+),(\d+)(,descending)?$/.exec(decodeURIComponent(location.hash));
  const place = asked && document.getElementById(asked[1]);
  const table = place && (place.tHead ? place : place.querySelector("table"));
  if (table && Number(asked[2]) < table.tHead.rows[0].cells.length) {
    sortTable(table, Number(asked[2]), asked[3] ? "descending" : "ascending");
    place.scrollIntoView();
  }
}

document.querySelectorAll(".lchp-table table, table.sortable").forEach(makeSortable);
document.querySelectorAll(".lchp-table td").forEach((cell) => {
  if (["-", "not run"].includes(cell.textContent)) cell.classList.add("nil");
});
document.querySelectorAll("input[data-filters]").forEach(makeFilter);
makeTheme(document.getElementById("theme"));
sortByAddress();
window.addEventListener("hashchange", sortByAddress);

// paper shows all; what was closed is closed again afterwards
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
document.documentElement.dataset.ready = "true";
