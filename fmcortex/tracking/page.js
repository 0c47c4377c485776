"use strict";
// Values under the pointer, read back from the lines: the axes' ends are attributes of each svg.
const LEFT = 52, RIGHT = 470, TOP = 22, BOTTOM = 194, WIDTH = 480;
const tip = document.getElementById("tip");
const space = "http://www.w3.org/2000/svg";
const charts = [...document.querySelectorAll("svg[data-x]")].map((svg) => ({
  svg,
  axis: svg.dataset.axis,
  x: svg.dataset.x.split(" ").map(Number),
  y: svg.dataset.y.split(" ").map(Number),
  log: "log" in svg.dataset,
  cursor: null,
  lines: null,
}));

function linesOf(chart) {
  chart.lines ??= [...chart.svg.querySelectorAll("polyline")].map((line) => ({
    name: line.dataset.name,
    colour: line.getAttribute("stroke"),
    points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  return chart.lines;
}

function valueAt(chart, pixel) {
  const part = (BOTTOM - pixel) / (BOTTOM - TOP);
  const [low, high] = chart.y;
  return chart.log ? low * (high / low) ** part : low + part * (high - low);
}

function written(value) {
  const size = Math.abs(value);
  if (size < 1e-12) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function nearest(points, at) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < at) low = middle; else high = middle;
  }
  return at - points[low][0] < points[high][0] - at ? points[low] : points[high];
}

function time(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + (s % 60) + " s";
  return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
}

function mark(chart, at) {
  if (!chart.cursor) {
    chart.cursor = document.createElementNS(space, "path");
    chart.cursor.setAttribute("class", "cursor");
    chart.svg.append(chart.cursor);
  }
  chart.cursor.setAttribute("d", at === null ? "" : `M${at} ${TOP}V${BOTTOM}`);
}

function show(chart, event) {
  const box = chart.svg.getBoundingClientRect();
  const pointer = (event.clientX - box.left) / box.width * WIDTH;
  const at = Math.min(Math.max(pointer, LEFT), RIGHT);
  const rows = linesOf(chart).map((line) => ({ line, point: nearest(line.points, at) }));
  if (!rows.length) return;
  const [low, high] = chart.x;
  const near = rows.reduce((a, b) => Math.abs(b.point[0] - at) < Math.abs(a.point[0] - at) ? b : a);
  const x = low + (near.point[0] - LEFT) / (RIGHT - LEFT) * (high - low);
  tip.replaceChildren(chart.axis === "time" ? time(x) : "step " + Math.round(x));
  for (const { line, point } of rows) {
    const row = document.createElement("div"), dot = document.createElement("i");
    dot.style.background = line.colour;
    row.append(dot, line.name + " ");
    row.append(Object.assign(document.createElement("b"), {
      textContent: written(valueAt(chart, point[1])),
    }));
    tip.append(row);
  }
  tip.style.display = "block";
  const right = event.clientX + 18 + tip.offsetWidth > innerWidth;
  tip.style.left = (right ? event.clientX - 18 - tip.offsetWidth : event.clientX + 18) + "px";
  const lowest = innerHeight - tip.offsetHeight - 8;
  tip.style.top = Math.max(Math.min(event.clientY + 12, lowest), 8) + "px";
  for (const other of charts) if (other.axis === chart.axis) mark(other, near.point[0]);
}

for (const chart of charts) {
  chart.svg.addEventListener("pointermove", (event) => show(chart, event));
  chart.svg.addEventListener("pointerleave", () => {
    tip.style.display = "none";
    for (const other of charts) mark(other, null);
  });
}
