// Tables of class "sortable": a click on a heading sorts, a box filters. Without JavaScript they are plain tables.
"use strict";

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻";

// The number that a cell begins with, such as 1.2e+05, 1.2·10⁵, 10^3.4 or 43 %; NaN for a dash or a word.
function numberIn(cell) {
  const text = cell.innerHTML
    .replace(/<sup>(.*?)<\/sup>/g, "^$1")
    .replace(/<[^>]*>/g, " ")
    .replace(/[⁻⁰¹²³⁴-⁹]+/g, (digits) => "^" + [...digits].map((c) => "0123456789-"[SUPERSCRIPTS.indexOf(c)]).join(""))
    .replace(/−/g, "-")
    .trim();
  if (/^-?∞/.test(text)) return text[0] === "-" ? -Infinity : Infinity;
  const plain = "-?\\d+(?:\\.\\d+)?(?:e[-+]?\\d+)?";
  const match = text.match(new RegExp(`^(?:(${plain})·)?10\\^(${plain})|^${plain}`));
  if (!match) return NaN;
  return match[2] === undefined ? Number(match[0]) : Number(match[1] ?? 1) * 10 ** Number(match[2]);
}

const wordsIn = (cell) => cell.textContent.trim();

// Order of two rows by one cell each: numbers, then words; L2 before L10; dashes last in either direction.
function compare(a, b, direction) {
  const [x, y] = [numberIn(a), numberIn(b)];
  const rank = (cell, value) => (/^[–-]?$/.test(wordsIn(cell)) ? 2 : Number.isNaN(value) ? 1 : 0);
  const [p, q] = [rank(a, x), rank(b, y)];
  if (p !== q) return p === 2 || q === 2 ? p - q : direction * (p - q);
  if (p === 0) return x === y ? 0 : direction * (x < y ? -1 : 1);
  return direction * wordsIn(a).localeCompare(wordsIn(b), "en", { numeric: true });
}

function sortBy(table, column, direction) {
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(a.cells[column], b.cells[column], direction));
  table.tBodies[0].append(...rows);
  headings(table).forEach((heading, i) => {
    heading.setAttribute("aria-sort", i !== column ? "none" : direction > 0 ? "ascending" : "descending");
  });
}

const headings = (table) => [...table.tHead.rows[0].cells];

function addControls(table) {
  const bar = document.createElement("div");
  bar.className = "controls";
  const box = Object.assign(document.createElement("input"), { type: "search", placeholder: "filter" });
  box.setAttribute("aria-label", "filter the rows");
  bar.append(box);
  const chosen = headings(table).findIndex((heading) => heading.hasAttribute("data-filter"));
  const name = (heading) => heading.textContent.trim().replace(/\s+/g, " ");
  const select = chosen < 0 ? null : document.createElement("select");
  const group = (row) => wordsIn(row.cells[chosen].querySelector("b") ?? row.cells[chosen]);
  if (select) {
    const kinds = new Set([...table.tBodies[0].rows].map(group));
    select.setAttribute("aria-label", name(headings(table)[chosen]));
    select.append(new Option(`any ${headings(table)[chosen].dataset.filter}`, ""), ...[...kinds].map((x) => new Option(x)));
    bar.append(select);
  }
  const order = document.createElement("select"); // where headings are hidden, on a narrow screen
  order.className = "order";
  order.setAttribute("aria-label", "sort by");
  order.append(...headings(table).map((heading, i) => new Option(`sort by ${name(heading)}`, i)));
  order.addEventListener("change", () => sortBy(table, Number(order.value), 1));
  const count = document.createElement("span");
  bar.append(order, count);
  const filter = () => {
    const rows = [...table.tBodies[0].rows], words = box.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || Boolean(select?.value && group(row) !== select.value);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = shown < rows.length ? `${shown} of ${rows.length}` : "";
  };
  [box, select].forEach((x) => x?.addEventListener("input", filter));
  table.before(bar);
}

for (const table of document.querySelectorAll("table.sortable")) {
  headings(table).forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () =>
      sortBy(table, column, heading.getAttribute("aria-sort") === "ascending" ? -1 : 1));
  });
  addControls(table);
}

// A link to a closed part of the page opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();
