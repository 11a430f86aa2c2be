// Draws the charts. Each is an SVG that acts as a slider over the steps; the legend reads the values.

const BOX = { width: 380, height: 180, left: 46, right: 10, top: 10, bottom: 22 };
const WIDE = { ...BOX, width: 780, height: 220 };

function drawCharts(specs, places, onPick) {
  const charts = specs.map((spec, i) => drawChart(spec, places[i]));
  const window = Math.max(0, ...charts.map((chart) => smoothing(chart.steps)));
  const note = document.getElementById("thick");
  if (window && note) note.textContent = `The thick line is a mean over ${2 * window + 1} steps.`;
  const showAll = oncePerFrame((step) => charts.forEach((chart) => chart.show(step)));
  for (const chart of charts) {
    const { svg, steps } = chart;
    svg.addEventListener("pointermove", (event) => showAll(chart.stepAt(event.clientX)));
    svg.addEventListener("pointerleave", () => showAll(null));
    svg.addEventListener("click", (event) => onPick(chart.stepAt(event.clientX)));
    svg.addEventListener("blur", () => showAll(null));
    svg.addEventListener("keydown", (event) => {
      const last = steps.length - 1;
      const at = chart.shown();
      const page = Math.max(1, Math.round(last / 10));
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, PageUp: at + page, PageDown: at - page, Home: 0, End: last };
      if (event.key === "Enter") onPick(steps[at]);
      else if (event.key === "Escape") showAll(null);
      else if (event.key in moves) {
        const step = steps[Math.min(last, Math.max(0, moves[event.key]))];
        chart.show(step); // at once: the next key may come before the next frame
        showAll(step);
      } else return;
      event.preventDefault();
    });
  }
}

function drawChart(spec, place) {
  const box = spec.kind === "stack" ? WIDE : BOX;
  const { steps, series } = spec;
  series.forEach((line, i) => { line.color ??= i; });
  const half = spec.kind === "stack" ? 0.5 : 0;
  const first = steps[0] - half;
  const span = steps[steps.length - 1] + half - first;
  const inner = box.width - box.left - box.right;
  const x = (step) => box.left + (span > 0 ? ((step - first) / span) * inner : inner / 2);
  const axis = valueAxis(spec);
  const y = (value) => box.top + (1 - (value - axis.low) / (axis.high - axis.low)) * (box.height - box.top - box.bottom);
  const svg = drawing("svg", { viewBox: `0 0 ${box.width} ${box.height}`, tabindex: 0, role: "slider",
    "aria-label": spec.says ? `${spec.title}, ${spec.says}` : spec.title, "aria-valuemin": steps[0], "aria-valuemax": steps[steps.length - 1] });
  svg.append(grid(box, axis, steps, x, y));
  if (spec.kind === "stack") svg.append(bars(series, steps, x, y, axis, inner / Math.max(1, span)));
  else series.forEach((line) => svg.append(...lineOf(line, spec, steps, x, y)));
  const cursor = drawing("line", { class: "cursor", y1: box.top, y2: box.height - box.bottom, visibility: "hidden" });
  svg.append(cursor);
  const legend = legendOf(series, spec);
  place.append(svg, legend.node);

  let at = steps.length - 1;
  const show = (step) => {
    at = step === null ? steps.length - 1 : nearest(steps, step);
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    cursor.setAttribute("x1", x(steps[at]));
    cursor.setAttribute("x2", x(steps[at]));
    const words = legend.show(steps, at);
    svg.setAttribute("aria-valuenow", steps[at]);
    svg.setAttribute("aria-valuetext", words);
  };
  const stepAt = (clientX) => {
    const rect = svg.getBoundingClientRect();
    const inside = ((clientX - rect.left) / rect.width) * box.width;
    return steps[nearest(steps, first + ((inside - box.left) / inner) * span)];
  };
  show(null);
  return { svg, steps, show, stepAt, shown: () => at };
}

function valueAxis(spec) {
  const values = [];
  const num = spec.steps.length;
  for (let i = 0; i < num; i++) {
    if (spec.kind === "stack") values.push(spec.series.reduce((sum, line) => sum + (line.values[i] ?? 0), 0));
    else for (const line of spec.series) {
      const value = line.values[i];
      if (value === null) continue;
      const around = line.band[i] ?? 0;
      values.push(value - around, value + around);
    }
  }
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (spec.kind === "stack" || (spec.low === 0 && low >= 0 && low < high / 2)) low = 0;
  if (spec.low !== null) low = Math.max(low, spec.low);
  if (spec.high !== null) high = Math.min(high, spec.high);
  if (!(high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)))) { // flat, but for the last bits
    const room = Math.abs(high) * 0.1 || 1;
    [low, high] = [spec.low === 0 && low === 0 ? 0 : low - room, high + room];
  }
  return { low, high, ...roundTicks(low, high) };
}

// Three to six round numbers between two.
function roundTicks(low, high, least = 0) {
  const rough = Math.max(least, (high - low) / 4);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const tick = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough * 0.7);
  const ticks = [];
  for (let k = Math.ceil(low / tick - 1e-9); k * tick <= high + tick * 1e-9; k++) ticks.push(k * tick);
  return { ticks, tick };
}

function grid(box, axis, steps, x, y) {
  const group = drawing("g", { class: "grid", "aria-hidden": "true" });
  const digits = Math.max(0, -Math.floor(Math.log10(axis.tick)));
  for (const tick of axis.ticks) {
    const text = digits > 4 ? (tick === 0 ? "0" : tick.toExponential(0)) : axis.tick >= 1000 ? `${tick / 1000}k` : tick.toFixed(digits);
    group.append(drawing("line", { x1: box.left, x2: box.width - box.right, y1: y(tick), y2: y(tick) }));
    group.append(drawing("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, text));
  }
  const last = steps[steps.length - 1];
  const round = roundTicks(steps[0], last, 1);
  const shown = round.ticks.filter((step) => step - steps[0] > round.tick / 2);
  for (const step of [steps[0], ...shown]) group.append(drawing("text", { x: x(step), y: box.height - 6, "text-anchor": "middle" }, step));
  return group;
}

// A gap in the values is a gap in the line; a value alone between gaps is a dot.
function lineOf(line, spec, steps, x, y) {
  const shapes = [];
  const window = smoothing(steps);
  for (const [start, end] of runsOf(line.values)) {
    const at = Array.from({ length: end - start }, (_, k) => start + k);
    if (line.band.length) {
      const edge = (sign) => (i) => {
        const value = line.values[i] + sign * (line.band[i] ?? 0);
        return `${x(steps[i]).toFixed(1)},${y(Math.min(spec.high ?? Infinity, Math.max(spec.low ?? -Infinity, value))).toFixed(1)}`;
      };
      shapes.push(drawing("polygon", { class: `band c${line.color}`, points: [...at.map(edge(1)), ...at.reverse().map(edge(-1))].join(" ") }));
      at.reverse();
    }
    const points = at.map((i) => `${x(steps[i]).toFixed(1)},${y(line.values[i]).toFixed(1)}`);
    if (points.length > 1) shapes.push(drawing("polyline", { class: `line c${line.color}${window ? " raw" : ""}`, points: points.join(" ") }));
    if (points.length === 1 || steps.length <= 12) {
      for (const i of at) shapes.push(drawing("circle", { class: `dot c${line.color}`, cx: x(steps[i]), cy: y(line.values[i]), r: window ? 1.2 : 2.5 }));
    }
  }
  if (window) shapes.push(drawing("polyline", { class: `line c${line.color}`, points: movingMean(line.values, window).map(([i, value]) => `${x(steps[i]).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  return shapes;
}

// Of many steps, a moving mean over so many on either side is drawn upon the values; 0: it is not.
function smoothing(steps) {
  return steps.length > 60 ? Math.round(steps.length / 40) : 0;
}

// Over the values there are, gaps passed over: [place, mean] for each of them.
function movingMean(values, window) {
  return values.flatMap((value, i) => {
    if (value === null) return [];
    const around = values.slice(Math.max(0, i - window), i + window + 1).filter((each) => each !== null);
    return [[i, around.reduce((sum, each) => sum + each, 0) / around.length]];
  });
}

function runsOf(values) {
  const runs = [];
  let start = null;
  values.forEach((value, i) => {
    if (value !== null && start === null) start = i;
    if (value === null && start !== null) {
      runs.push([start, i]);
      start = null;
    }
  });
  if (start !== null) runs.push([start, values.length]);
  return runs;
}

function bars(series, steps, x, y, axis, room) {
  const group = drawing("g");
  const width = Math.max(0.8, room * (room > 4 ? 0.85 : 1));
  steps.forEach((step, i) => {
    let below = 0;
    for (const line of series) {
      const value = line.values[i] ?? 0;
      if (value <= 0) continue;
      const top = y(below + value);
      group.append(drawing("rect", { class: `bar c${line.color}`, x: x(step) - width / 2, width, y: top, height: Math.max(0, y(below) - top) }));
      below += value;
    }
  });
  return group;
}

function legendOf(series, spec) {
  const step = element("li", { class: "at" });
  const outputs = series.map(() => element("span", { class: "value" }));
  const rows = series.map((line, i) => element("li", {}, element("span", { class: `swatch c${line.color}` }), line.name, " ", outputs[i]));
  const node = element("ul", { class: "legend" }, step, rows);
  const show = (steps, at) => {
    step.textContent = `step ${steps[at]}`;
    const words = series.map((line, i) => {
      const around = line.band.length && line.band[at] !== null ? ` ± ${figure(line.band[at])}` : "";
      outputs[i].textContent = figure(line.values[at]) + around;
      return `${line.name} ${outputs[i].textContent}`;
    });
    if (spec.kind === "stack") {
      const total = series.reduce((sum, line) => sum + (line.values[at] ?? 0), 0);
      step.textContent += `: ${figure(total, 1)} s`;
    }
    return `step ${steps[at]}: ${words.join(", ")}`;
  };
  return { node, show };
}

function nearest(steps, wanted) {
  let low = 0;
  let high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= wanted) low = middle;
    else high = middle;
  }
  return Math.abs(steps[low] - wanted) <= Math.abs(steps[high] - wanted) ? low : high;
}
