"use strict";
// Theme, toggles, the table's sorting and filter, copying commands.
const root = document.documentElement;

function storedTheme() {
  try { return localStorage.getItem("sft-report-theme"); } catch { return null; } // file:// may forbid storage
}

function applyTheme(theme) {
  if (theme) root.dataset.theme = theme;
  redraw();
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const next = dark ? "light" : "dark";
  try { localStorage.setItem("sft-report-theme", next); } catch { /* the choice lasts for this visit */ }
  applyTheme(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
applyTheme(storedTheme());

for (const input of document.querySelectorAll("[data-view]")) {
  input.addEventListener("change", () => {
    view[input.dataset.view] = input.type === "checkbox" ? input.checked : input.value;
    redraw();
  });
}

const chips = [...document.querySelectorAll(".chip")];

function show(indices) {
  visible.clear();
  indices.forEach((index) => visible.add(index));
  chips.forEach((chip) => chip.setAttribute("aria-pressed", String(visible.has(Number(chip.dataset.run)))));
  redraw();
}

function paintChips() {
  for (const chip of chips) {
    const run = DATA.runs[Number(chip.dataset.run)];
    chip.style.setProperty("--chip", runColor(run));
    chip.style.setProperty("--dash", dashMask(run));
  }
}

for (const chip of chips) {
  chip.addEventListener("click", () => {
    const index = Number(chip.dataset.run);
    show(visible.has(index) ? [...visible].filter((other) => other !== index) : [...visible, index]);
  });
}
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    const all = DATA.runs.map((_, index) => index);
    const count = { all: all.length, none: 0, best: 5 }[button.dataset.show];
    show(all.slice(0, count));
  });
}
paintChips();
new MutationObserver(paintChips).observe(root, { attributes: true, attributeFilter: ["data-theme"] });

// Numbers sort as numbers, other cells as text; empty cells come last in both directions.
function sortTable(header) {
  const body = header.closest("table").tBodies[0];
  const column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  const key = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : Number(a) - Number(b);
    return descending ? -order : order;
  });
  for (const cell of header.parentElement.cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
}

for (const button of document.querySelectorAll("#runs-table th button")) {
  button.addEventListener("click", () => sortTable(button.closest("th")));
}

document.getElementById("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelector("#runs-table tbody").rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = words.length ? `${shown} of ${rows.length} rows` : "";
});

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch { // no clipboard on file:// in some browsers: select the text instead
      getSelection().selectAllChildren(code);
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}

let themeOnScreen;
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("#failures details")) details.open = true;
  themeOnScreen = root.dataset.theme;
  applyTheme("light");
});
window.addEventListener("afterprint", () => {
  if (themeOnScreen) root.dataset.theme = themeOnScreen;
  else delete root.dataset.theme;
  redraw();
});
