"use strict";
const { labels, heat, tensors } = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

// What an element says when it is pointed at, touched or focused.
const tip = document.getElementById("tip");
function tell(event) {
  const told = event.target.closest?.("[data-tip]");
  tip.hidden = !told;
  if (!told) return;
  tip.textContent = told.dataset.tip;
  const box = told.getBoundingClientRect();
  const x = event.clientX ?? box.left, y = event.clientY ?? box.bottom;
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 4)) + "px";
  tip.style.top = (y + 16 + tip.offsetHeight < innerHeight ? y + 16 : y - tip.offsetHeight - 8) + "px";
}
for (const name of ["pointermove", "pointerdown", "focusin"]) addEventListener(name, tell);
document.addEventListener("pointerleave", () => { tip.hidden = true; });

// Chips hide the bars of a format.
for (const chip of document.querySelectorAll("[data-chip]")) {
  chip.addEventListener("click", () => {
    const shown = chip.getAttribute("aria-pressed") !== "true";
    chip.setAttribute("aria-pressed", shown);
    for (const bars of document.querySelectorAll("[data-format]"))
      if (bars.dataset.format === chip.dataset.chip) bars.hidden = !shown;
  });
}

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

// Layer by role: a row of cells for each role; drawn when it is opened.
function heatmap({ label, roles, layers, shares, ends: [least, most] }) {
  const grid = make("div", { className: "heatmap" });
  roles.forEach((role, i) => {
    const row = document.createElementNS(SVG, "svg");
    row.setAttribute("width", "100%");
    row.setAttribute("height", "16");
    shares[i].forEach((share, j) => {
      if (share < 0) return;
      const cell = document.createElementNS(SVG, "rect");
      const part = most > least ? Math.min(1, Math.max(0, (share - least) / (most - least))) : 1;
      const place = { x: 100 * j / layers.length + "%", y: 0, width: 100 / layers.length + "%",
        height: 16, class: "heat",
        style: `fill: color-mix(in oklab, var(--high) ${Math.round(100 * part)}%, var(--low))` };
      for (const [name, value] of Object.entries(place)) cell.setAttribute(name, value);
      cell.dataset.tip = `${label}, layer ${layers[j]}, ${role}: ${(share / 10).toFixed(1)}% used`;
      row.append(cell);
    });
    grid.append(make("span", { textContent: role }), row);
  });
  const scale = make("div", { className: "ends" },
    make("span", { textContent: `layer ${layers[0]}` }),
    make("span", { textContent: `${(least / 10).toFixed(1)}% (pale) to ${(most / 10).toFixed(1)}% used` +
      (roles.includes("norm") ? ", norms apart" : "") }),
    make("span", { textContent: layers[layers.length - 1] }));
  grid.append(make("span"), scale);
  return grid;
}
const maps = document.getElementById("heat");
if (!heat.length) maps.textContent = "No tensor's name tells of a layer.";
heat.forEach((one, i) => {
  const box = make("details", { open: i === 0 }, make("summary", { textContent: one.label }));
  const fill = () => { if (box.open && box.childElementCount === 1) box.append(heatmap(one)); };
  box.addEventListener("toggle", fill);
  fill();
  maps.append(box);
});

// Tensors: a table that sorts by its head and shows what the filter says.
const HEAD = ["tensor", "source", "role", "format", "shape", "weights", "allocated", "entropy",
  "used", "wasted MB"];
const rows = tensors.map(([source, name, role, format, shape, weights, stored, entropy, wasted]) =>
  [name, labels[source], role, format, shape, weights, stored, entropy, stored ? entropy / stored : 0,
    wasted / 1e6]);
const SHOW = [null, null, null, null, null, v => v.toLocaleString("en"), v => v.toFixed(2),
  v => v.toFixed(3), v => (100 * v).toFixed(1) + "%", v => v.toFixed(3)];
let order = { column: 9, down: true };
const filter = document.getElementById("filter"), place = document.getElementById("tensors");
function list() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const { column, down } = order;
  const chosen = rows
    .filter(row => words.every(word => row.slice(0, 5).join(" ").toLowerCase().includes(word)))
    .sort((a, b) => (a[column] < b[column] ? -1 : a[column] > b[column] ? 1 : 0) * (down ? -1 : 1));
  const head = make("tr", {}, ...HEAD.map((name, i) => {
    const mark = i === column ? (down ? " ↓" : " ↑") : "";
    const by = make("button", { type: "button", textContent: name + mark });
    by.addEventListener("click", () => {
      order = { column: i, down: i === column ? !down : i > 4 };
      list();
    });
    const cell = make("th", { scope: "col" }, by);
    cell.setAttribute("aria-sort", i === column ? (down ? "descending" : "ascending") : "none");
    return cell;
  }));
  const body = chosen.map(row => make("tr", {}, ...row.map((value, i) =>
    make("td", { textContent: SHOW[i] ? SHOW[i](value) : value }))));
  place.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}
filter.addEventListener("input", list);
list();
