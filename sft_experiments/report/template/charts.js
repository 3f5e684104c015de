"use strict";
// Charts of the report. All numbers come from the JSON block; colours come from the theme's CSS variables.
const DATA = JSON.parse(document.getElementById("data").textContent);
const visible = new Set(DATA.runs.map((_, index) => index));
const drawn = new Map(); // element id -> function that draws it again
const view = { axis: "tokens", scale: "linear", train: true, eval: true };

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// The plotting library reads a few HTML tags in labels: texts of runs must stay texts.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

function ramp(position) {
  // An ordered scale through the theme's stops; position from 0 to 1.
  const stops = css("--ramp").split(" ").map(channels);
  const place = Math.min(Math.max(position, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const mixed = stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (place - low)));
  return `rgb(${mixed.join(",")})`;
}

const rampOf = (index, count) => ramp(count > 1 ? index / (count - 1) : 0.5);
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const BARS = { solid: [20, 0], dash: [6, 3], dot: [2, 2], dashdot: [6, 2, 2, 2], longdash: [10, 3], longdashdot: [10, 2, 2, 2] };

// The line of a run as a CSS mask, for its chip.
function dashMask(run) {
  const bars = BARS[DASHES[run.dash % DASHES.length]];
  let end = 0;
  const stops = bars.map((length, i) => `${i % 2 ? "transparent" : "black"} ${end}px ${(end += length)}px`);
  return `repeating-linear-gradient(90deg, ${stops.join(", ")})`;
}

function runColor(run) {
  return rampOf(run.color, DATA.legend.color ? DATA.legend.color.values.length : 1);
}

function baseLayout(extra) {
  const axis = { gridcolor: css("--grid"), linecolor: css("--rule"), zeroline: false, ticks: "outside",
    tickcolor: css("--rule"), ticklen: 4, automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, showlegend: false,
    font: { family: css("--sans"), size: 12, color: css("--ink") },
    margin: { l: 60, r: 16, t: 28, b: 44 }, hovermode: "closest",
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { color: css("--ink") } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent") },
  };
  Object.assign(layout, extra);
  const logarithmic = (one) => (one && one.type === "log" && !one.tickvals ? { dtick: "D2", minorloglabels: "complete", tickformat: "~g" } : {});
  layout.xaxis = { ...axis, ...logarithmic(extra.xaxis), ...(extra.xaxis || {}) };
  layout.yaxis = { ...axis, ...logarithmic(extra.yaxis), ...(extra.yaxis || {}) };
  for (const one of [layout.xaxis, layout.yaxis]) if (one.title) one.title = { ...one.title, standoff: 12 };
  return layout;
}

function plot(id, traces, layout) {
  // The buttons are listed one by one: the library's own list has one that uploads the chart.
  const config = { displaylogo: false, displayModeBar: narrow() ? false : "hover", responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  return Plotly.react(id, traces, baseLayout(layout), config);
}

function drawMap() {
  const figure = structuredClone(DATA.figures.heat_map);
  const [main, failures] = figure.data;
  const scale = [0, 0.25, 0.5, 0.75, 1].map((at) => [at, mapColor(at)]);
  const bar = { title: { text: "behind the best", side: "right" }, thickness: 10, outlinewidth: 0, tickformat: ".2~g" };
  if (figure.is_grid) {
    Object.assign(main, { zmin: 0, zmax: figure.limit, colorscale: scale, colorbar: bar });
    main.textfont = { size: narrow() ? 9 : 12, family: css("--sans") };
  } else {
    const sizes = main.gap.map((_, index) => (index === main.best_index ? 18 : 11));
    const lines = main.gap.map((_, index) => (index === main.best_index ? 3 : 0.5));
    main.marker = { color: main.gap, cmin: 0, cmax: figure.limit, colorscale: scale, colorbar: bar, size: sizes,
      line: { color: css("--frame"), width: lines } };
  }
  failures.marker = { symbol: "x-thin", size: 12, line: { color: css("--bad"), width: 2 } };
  failures.textfont = { color: css("--bad"), size: narrow() ? 9 : 11 };
  const shapes = (figure.layout.shapes || []).map(({ role, ...shape }) => ({
    ...shape, layer: "above", fillcolor: "rgba(0,0,0,0)",
    line: { color: css("--frame"), width: role === "best" ? 4 : 2, dash: role === "best" ? "solid" : "5px,4px" },
  }));
  const flat = { showgrid: !figure.is_grid, gridcolor: css("--grid") };
  if (narrow()) main.showscale = false;
  plot("map", figure.data, { ...figure.layout, shapes,
    xaxis: { ...figure.layout.xaxis, ...flat }, yaxis: { ...figure.layout.yaxis, ...flat } });
}

function mapColor(at) {
  const [best, worst] = [css("--map-best"), css("--map-worst")].map(channels);
  const eased = Math.pow(at, 0.8);
  return `rgb(${best.map((value, i) => Math.round(value + (worst[i] - value) * eased)).join(",")})`;
}

function drawProfile() {
  const figure = structuredClone(DATA.figures.profile);
  for (const trace of figure.data) {
    const color = rampOf(trace.color_class, figure.num_colors);
    trace.line = { color, width: 2 };
    trace.marker = { color, size: 7 };
    if (trace.error_y) trace.error_y.color = color;
  }
  const shapes = [];
  if (figure.optimum) {
    const [estimate, low, high] = figure.optimum;
    const whole = { yref: "paper", y0: 0, y1: 1, layer: "below" };
    shapes.push({ type: "rect", x0: low, x1: high, ...whole, fillcolor: css("--band"), line: { width: 0 } });
    shapes.push({ type: "line", x0: estimate, x1: estimate, ...whole, line: { color: css("--accent"), width: 1.5, dash: "dot" } });
  }
  const legend = { ...figure.layout.legend, orientation: "h", y: 1.02, yanchor: "bottom", x: 0 };
  plot("profile", figure.data, { ...figure.layout, shapes, legend, showlegend: figure.data.length > 1, margin: { l: 60, r: 16, t: 40, b: 44 } });
}

function trace(run, index, part, series, extra) {
  const columns = run[part];
  if (!columns[series] || !visible.has(index)) return null;
  const isBest = index === 0 && run.rank === 1;
  const many = visible.size > 20;
  return {
    type: "scatter", mode: "lines", x: columns[view.axis], y: columns[series], name: plain(run.label), connectgaps: true,
    opacity: isBest ? 1 : many ? 0.45 : 0.75,
    line: { color: runColor(run), width: isBest ? 3 : many ? 1 : 1.4, dash: DASHES[run.dash % DASHES.length] },
    hovertemplate: `%{y:.4g} at %{x:,}<extra>${plain(run.label)}${isBest ? " (best)" : ""}</extra>`, ...extra,
  };
}

function traces(part, series, extra = {}) {
  // The best run last, so that it lies on top.
  return DATA.runs.map((run, index) => trace(run, index, part, series, extra)).filter(Boolean).reverse();
}

const xAxis = () => ({ title: { text: view.axis === "tokens" ? "tokens trained" : "optimizer steps" }, rangemode: "tozero" });

function drawLoss() {
  const shown = [];
  if (view.train) shown.push(...traces("train", "loss", view.eval ? { opacity: 0.3 } : {}));
  if (view.eval) shown.push(...traces("eval", "loss", { mode: "lines+markers", marker: { size: 4 } }));
  plot("loss", shown, { xaxis: xAxis(), yaxis: { title: { text: "loss (nats per token)" }, type: view.scale } });
}

function drawSeries(id, part, series, title, type) {
  return () => plot(id, traces(part, series), { xaxis: xAxis(), yaxis: { title: { text: title }, type: type || "linear" } });
}

function drawHealth() {
  const rules = [...new Set(DATA.runs.flatMap((run) => run.alerts.map((alert) => alert.rule)))].sort();
  const symbols = ["circle", "diamond", "square", "triangle-up", "x", "star", "cross", "hexagon"];
  const shown = rules.map((rule, order) => {
    const events = DATA.runs.flatMap((run) => run.alerts.filter((alert) => alert.rule === rule).map((alert) => ({ ...alert, run })));
    return {
      type: "scatter", mode: "markers", name: plain(rule), x: events.map((event) => event[view.axis]),
      y: events.map((event) => plain(event.run.label)), text: events.map((event) => plain(event.message)),
      marker: { size: 10, symbol: symbols[order % symbols.length], color: rampOf(order, rules.length) },
      hovertemplate: "%{text}<br>at %{x:,}<extra>%{fullData.name}</extra>",
    };
  });
  plot("health", shown, { xaxis: xAxis(), yaxis: { type: "category" }, showlegend: true,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 60, r: 16, t: 40, b: 44 } });
}

const narrow = () => window.innerWidth < 640;
const DRAW = {
  map: drawMap, profile: drawProfile, loss: drawLoss, health: drawHealth,
  schedule: drawSeries("schedule", "train", "learning_rate", "learning rate"),
  grad_norm: drawSeries("grad_norm", "train", "grad_norm", "gradient norm", "log"),
  throughput: drawSeries("throughput", "train", "throughput", "tokens per second"),
  memory: drawSeries("memory", "train", "memory", "memory (GiB)"),
};

function redraw() {
  for (const draw of drawn.values()) draw();
}

// A task metric of the register: its element says which.
function taskMetric(id) {
  const { series, label } = document.getElementById(id).dataset;
  return drawSeries(id, "eval", series, label);
}

function drawOnce(id) {
  if (drawn.has(id)) return;
  drawn.set(id, DRAW[id] || taskMetric(id));
  drawn.get(id)();
}

// A chart is drawn when it comes near the screen, so that a page with a hundred runs opens at once.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawOnce(entry.target.id);
}, { rootMargin: "400px" });
for (const element of document.querySelectorAll(".chart")) watcher.observe(element);
window.addEventListener("beforeprint", () => {
  for (const element of document.querySelectorAll(".chart")) drawOnce(element.id);
});
