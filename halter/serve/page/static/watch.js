// Watch: the curves of one or several runs, read on by byte offsets while their logs grow.

import { json, part } from "./api.js";
import { CHARTS, RunLog, drawn, legend, short, smoothed, swatch } from "./curves.js";
import { button, el } from "./dom.js";

const EVERY = 2000;
const HIDDEN = 10000;
const COLORS = 6;
const ROWS = 200;

export function watchView(section) {
  const runs = new Map(); // name: {row, log, next, file, color}; only watched ones have a log
  let timer = 0;
  let turn = Promise.resolve();
  const list = el("fieldset", { class: "runs card" });
  const charts = el("div", { class: "charts" });
  const guards = el("section", { class: "guards", "aria-label": "Guards and events" });
  const note = el("p", { class: "failed", role: "alert", hidden: true });
  const none = el("div", { class: "empty" }, el("p", {}, "No run is known here."),
    el("p", { class: "quiet" }, "Start the server with --runs FOLDER: a run folder, or a folder of these."));
  const smooth = el("input", { type: "checkbox", checked: true });
  smooth.addEventListener("change", draw);
  const tables = button("Show tables", () => {
    const shown = tables.getAttribute("aria-pressed") === "true";
    tables.setAttribute("aria-pressed", String(!shown));
    draw();
  }, { class: "plain", "aria-pressed": "false" });
  const head = el("div", { class: "row" }, el("label", { class: "tick" }, smooth, "Smooth"), tables);
  section.append(note, none, el("div", { class: "watch", hidden: true }, el("div", { class: "watch-side" }, list, head), el("div", {}, charts, guards)));

  async function look() {
    const told = (await json("/ui/runs")).runs;
    const begun = runs.size > 0;
    for (const row of told) {
      if (runs.has(row.name)) runs.get(row.name).row = row;
      else runs.set(row.name, { row, log: null, next: 0, file: null, color: -1 });
    }
    for (const name of [...runs.keys()]) if (!told.some((row) => row.name === name)) runs.delete(name);
    if (!begun && told.length) watch(newest(told), true);
    const grown = await Promise.all([...runs].filter(([, run]) => run.log).map(([name, run]) => readOn(name, run)));
    lay();
    if (grown.includes(true) || !begun) draw();
  }

  const newest = (rows) => rows.reduce((a, b) => (b.changed > a.changed ? b : a)).name;

  // Reads what is new in a run's log; another file in its place begins anew.
  async function readOn(name, run) {
    let grown = false;
    for (;;) {
      const told = await part(`/ui/runs/${encodeURIComponent(name)}/metrics?after=${run.next}`);
      if (run.file !== null && (told.file !== run.file || run.next > run.row.bytes)) {
        Object.assign(run, { log: new RunLog(), next: 0, file: null });
        grown = true;
        continue;
      }
      run.file = told.file;
      if (told.next === run.next) return grown;
      run.next = told.next;
      run.log.add(told.lines);
      grown = true;
    }
  }

  function watch(name, on) {
    const run = runs.get(name);
    const taken = new Set([...runs.values()].map((one) => one.color));
    run.color = on ? [...Array(COLORS).keys()].find((color) => !taken.has(color)) ?? -1 : -1;
    Object.assign(run, { log: run.color < 0 ? null : new RunLog(), next: 0, file: null });
  }

  function lay() {
    none.hidden = runs.size > 0;
    section.querySelector(".watch").hidden = runs.size === 0;
    const names = [...runs.keys()];
    const shown = [...list.querySelectorAll("input")].map((input) => input.value);
    if (names.join("\n") !== shown.join("\n")) {
      list.replaceChildren(el("legend", {}, "Runs"), ...names.map(entry));
    }
    const full = [...runs.values()].filter((run) => run.log).length >= COLORS;
    for (const input of list.querySelectorAll("input")) {
      const run = runs.get(input.value);
      input.checked = Boolean(run.log);
      input.disabled = full && !run.log;
      const label = input.parentElement;
      label.querySelector(".sample").replaceChildren(...(run.log ? [swatch(run.color)] : []));
      label.querySelector(".state").textContent = state(run);
    }
  }

  function entry(name) {
    const input = el("input", { type: "checkbox", value: name });
    input.addEventListener("change", () => {
      watch(name, input.checked);
      again(0);
    });
    return el("label", { class: "run" }, input, el("span", { class: "name" }, name), el("span", { class: "sample" }), el("span", { class: "state quiet" }));
  }

  function state({ row, log }) {
    const step = log?.step ? `step ${log.step}` : "";
    const epoch = log?.epoch ? `epoch ${log.epoch.toFixed(2)}` : "";
    const ago = Math.max(0, Date.now() / 1000 - row.changed);
    return [row.finished ? "finished" : `wrote ${since(ago)} ago`, step, epoch].filter(Boolean).join(", ");
  }

  function lines(chart) {
    const found = [];
    for (const [name, { log, color }] of runs) {
      for (const one of log?.series.values() ?? []) {
        if (one.key !== chart.key || !one.steps.length) continue;
        const scale = chart.scale ?? 1;
        const points = one.steps.map((step, at) => [step, one.values[at] * scale]);
        const called = `${name}${one.adapter ? ` ${one.adapter}` : ""}`;
        const eased = chart.smooth && smooth.checked && points.length > 10;
        found.push({ name: called, color, points, dots: chart.dots, faint: eased });
        if (eased) {
          const means = smoothed(points.map(([, value]) => value));
          found.push({ name: called, color, points: points.map(([step], at) => [step, means[at]]) });
        }
      }
    }
    return found;
  }

  function draw() {
    const marks = [...runs].flatMap(([, { log, color }]) => (log?.events ?? []).filter((one) => !one.kept).map((one) => ({ ...one, color })));
    const table = tables.getAttribute("aria-pressed") === "true";
    charts.replaceChildren(...CHARTS.map((chart) => {
      const found = lines(chart);
      const shown = ["loss", "grad_norm"].includes(chart.key) ? marks : [];
      const inside = table && found.length ? tabled(chart, found) : drawn(chart, found, shown);
      return el("figure", { class: "card" }, el("figcaption", {}, el("strong", {}, chart.title), legend(chart, found)), inside);
    }));
    drawGuards();
  }

  function drawGuards() {
    const rows = [...runs].flatMap(([name, { log }]) => (log?.events ?? []).map((event) => [name, event.step, event.what]));
    guards.replaceChildren(el("h2", {}, "Guards and events"), rows.length
      ? grid(["Run", "Step", "What"], rows.slice(-ROWS), "Guards and events")
      : el("p", { class: "quiet" }, "No guard has anything to say of these runs."));
  }

  function tabled(chart, found) {
    const own = found.filter((line) => !line.faint);
    const steps = [...new Set(own.flatMap((line) => line.points.map(([step]) => step)))].sort((a, b) => a - b).slice(-ROWS);
    const values = own.map((line) => new Map(line.points));
    const rows = steps.map((step) => [step, ...values.map((at) => (at.has(step) ? short(at.get(step)) : ""))]);
    return grid(["Step", ...own.map((line) => line.name)], rows, chart.title);
  }

  async function again(wait) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      turn = turn.then(async () => {
        if (section.hidden) return;
        try {
          await look();
          note.hidden = true;
        } catch (error) {
          note.textContent = error.message;
          note.hidden = false;
        }
        again(document.hidden ? HIDDEN : EVERY);
      });
    }, wait);
  }

  document.addEventListener("visibilitychange", () => again(0));
  return () => again(0);
}

function grid(heads, rows, title) {
  const table = el("table", {}, el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, String(cell)))))));
  return el("div", { class: "wide tall", tabindex: "0", role: "group", "aria-label": `${title}, table` }, table);
}

function since(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}
