// A run's log as curves, and curves as SVG. Numbers in, nodes out; nothing here asks the server.

import { el, svg } from "./dom.js";

export const CHARTS = [
  { key: "loss", title: "Loss", log: true, smooth: true, digits: 4 },
  { key: "eval_loss", title: "Held-out loss", dots: true, digits: 4 },
  { key: "learning_rate", title: "Learning rate" },
  { key: "grad_norm", title: "Gradient norm", log: true, smooth: true, digits: 3 },
  { key: "tokens_per_second", title: "Tokens per second", smooth: true, digits: 0 },
  { key: "peak_memory_bytes", title: "Peak memory, GB", scale: 1e-9, digits: 2 },
];
const DASHES = ["", "7 4", "2 3", "9 3 2 3", "12 4", "4 2"];
const SMOOTH = 0.9;
const WIDTH = 520;
const HEIGHT = 220;
const EDGE = { left: 52, right: 12, top: 10, bottom: 26 };

// One run as its log grows. A run that was resumed writes its steps again: the newer ones count.
export class RunLog {
  series = new Map(); // key: {steps, values}
  events = []; // {step, what}
  step = 0;
  epoch = null;
  #attempt = 0;
  #rest = "";

  add(lines) {
    const all = (this.#rest + lines).split("\n");
    this.#rest = all.pop();
    for (const line of all) {
      let record;
      try {
        record = JSON.parse(line);
      } catch {
        continue; // torn by a crash
      }
      if (record && typeof record === "object" && Number.isFinite(record.step)) this.#record(record);
    }
  }

  #record(record) {
    const attempt = record.attempt ?? this.#attempt;
    if (attempt > this.#attempt) this.#forgetFrom(record.step);
    this.#attempt = attempt;
    this.step = Math.max(this.step, record.step);
    this.epoch = record.epoch ?? this.epoch;
    const adapter = Number.isInteger(record.trainee) ? `#${record.trainee + 1}` : "";
    this.#guards(record);
    if (record.alarm) return; // its step has a line of its own
    for (const { key } of CHARTS) {
      if (typeof record[key] !== "number") continue;
      const name = key + adapter;
      if (!this.series.has(name)) this.series.set(name, { key, adapter, steps: [], values: [] });
      const { steps, values } = this.series.get(name);
      steps.push(record.step);
      values.push(record[key]);
    }
  }

  #guards(record) {
    const { step } = record;
    if (record.trouble) this.events.push({ step, what: `${record.trouble}${record.applied === false ? ", step left out" : ""}` });
    if (Array.isArray(record.unmoved)) this.events.push({ step, what: `nothing moved at ${record.unmoved.length} places` });
    if (typeof record.kept_step === "number") this.events.push({ step, what: `kept step ${record.kept_step}`, kept: true });
  }

  #forgetFrom(step) {
    for (const one of this.series.values()) {
      const from = one.steps.findIndex((other) => other >= step);
      if (from >= 0) one.steps.length = one.values.length = from;
    }
    this.events = this.events.filter((event) => event.step < step);
    this.step = Math.min(this.step, step);
  }
}

// Exponential mean, without the pull of its start.
export function smoothed(values, weight = SMOOTH) {
  let mean = 0;
  let share = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

// At most two points for each of so many columns: the least and the largest, in their order. Peaks stay.
export function thinned(points, columns) {
  if (points.length <= 2 * columns) return points;
  const first = points[0][0];
  const wide = (points.at(-1)[0] - first) / columns || 1;
  const kept = [];
  for (let at = 0; at < points.length; ) {
    const column = Math.floor((points[at][0] - first) / wide);
    let low = at;
    let high = at;
    let next = at;
    while (next < points.length && Math.floor((points[next][0] - first) / wide) === column) {
      if (points[next][1] < points[low][1]) low = next;
      if (points[next][1] > points[high][1]) high = next;
      next += 1;
    }
    kept.push(...(low === high ? [points[low]] : [points[Math.min(low, high)], points[Math.max(low, high)]]));
    at = next;
  }
  return kept;
}

// Round numbers from low to high, about `count` of them.
export function ticks(low, high, count = 5) {
  const raw = (high - low) / count;
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((one) => one * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

export function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const one of [1, 2, 5]) {
      const value = one * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length >= 2 ? found : ticks(low, high, 4);
}

export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size && size < 1e-3) return value.toExponential(1).replace(/\.0e/, "e");
  return String(+value.toPrecision(4));
}

// {x, y, left, right, ...}: from numbers to places in the picture.
function frame(lines, log) {
  const xs = lines.flatMap((line) => [line.points[0][0], line.points.at(-1)[0]]);
  let [low, high] = [Infinity, -Infinity];
  for (const line of lines) {
    for (const [, value] of line.points) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  const onLog = log && low > 0 && high / low > 8;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  else if (!onLog) [low, high] = [low - (high - low) * 0.04, high + (high - low) * 0.04];
  const scale = (value) => (onLog ? Math.log(value) : value);
  const [from, to] = [Math.min(...xs), Math.max(...xs)];
  const wide = WIDTH - EDGE.left - EDGE.right;
  const tall = HEIGHT - EDGE.top - EDGE.bottom;
  return {
    from,
    to,
    ys: onLog ? logTicks(low, high) : ticks(low, high, 4),
    x: (step) => EDGE.left + (to > from ? (step - from) / (to - from) : 0.5) * wide,
    y: (value) => EDGE.top + (1 - (scale(value) - scale(low)) / (scale(high) - scale(low))) * tall,
  };
}

// A chart of lines [{name, color, points, faint?, dots?}] with marks [{step, color, what}], or words where there is none.
export function drawn(chart, lines, marks) {
  if (!lines.length) return el("p", { class: "none quiet" }, "Nothing in the log yet.");
  const at = frame(lines, chart.log);
  const node = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": summary(chart, lines) });
  const right = WIDTH - EDGE.right;
  const bottom = HEIGHT - EDGE.bottom;
  for (const value of at.ys) {
    const y = at.y(value).toFixed(1);
    node.append(svg("line", { x1: EDGE.left, x2: right, y1: y, y2: y, class: "grid" }),
      svg("text", { x: EDGE.left - 8, y, dy: "0.32em", class: "tick-y" }, short(value)));
  }
  for (const step of ticks(at.from, at.to, 5).filter((one) => Number.isInteger(one))) {
    node.append(svg("text", { x: at.x(step).toFixed(1), y: HEIGHT - 7, class: "tick-x" }, short(step)));
  }
  node.append(svg("line", { x1: EDGE.left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  for (const mark of marks) {
    const x = at.x(mark.step).toFixed(1);
    if (mark.step >= at.from && mark.step <= at.to) {
      node.append(svg("line", { x1: x, x2: x, y1: EDGE.top, y2: bottom, class: `mark c${mark.color + 1}` }, svg("title", {}, mark.what)));
    }
  }
  for (const line of lines) node.append(...path(line, at));
  return node;
}

function path(line, at) {
  const spots = thinned(line.points, WIDTH).map(([step, value]) => [at.x(step).toFixed(1), at.y(value).toFixed(1)]);
  const way = spots.map(([x, y], place) => `${place ? "L" : "M"}${x} ${y}`).join("");
  const made = [svg("path", { d: way, class: `curve c${line.color + 1}${line.faint ? " faint" : ""}`, "stroke-dasharray": line.faint ? null : DASHES[line.color] })];
  if (line.dots || spots.length === 1) made.push(...spots.map(([cx, cy]) => svg("circle", { cx, cy, r: 2.6, class: `dot c${line.color + 1}` })));
  return made;
}

const lastOf = (chart, value) => (chart.digits === undefined ? short(value) : value.toFixed(chart.digits));

// Whose line is which, and its last value.
export function legend(chart, lines) {
  return lines.filter((line) => !line.faint).map((line) =>
    el("span", { class: "key" }, swatch(line.color), line.name, el("b", {}, lastOf(chart, line.points.at(-1)[1]))));
}

export function summary(chart, lines) {
  const told = lines.filter((line) => !line.faint).map((line) => {
    const [step, value] = line.points.at(-1);
    return `${line.name} ${lastOf(chart, value)} at step ${step}`;
  });
  return `${chart.title}: ${told.join("; ")}`;
}

// A line's sample in the list of runs, drawn as in the charts.
export function swatch(color) {
  return svg("svg", { viewBox: "0 0 28 8", class: "swatch", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 27, y1: 4, y2: 4, class: `curve c${color + 1}`, "stroke-dasharray": DASHES[color] }));
}
