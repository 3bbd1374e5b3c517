// Adapters: a card for each model, of what lies in its folder.

import { json } from "./api.js";
import { copying, el } from "./dom.js";

const COUNT = new Intl.NumberFormat("en");

export function cardsView(section) {
  const note = el("p", { class: "quiet" }, "Reading the folders ...");
  const grid = el("div", { class: "cards" });
  section.append(note, grid);
  let asked = false;
  return async () => {
    if (asked || section.hidden) return;
    asked = true;
    try {
      const { cards } = await json("/ui/cards");
      grid.replaceChildren(...cards.map(card));
      note.hidden = true;
    } catch (error) {
      note.textContent = error.message;
    }
    asked = false;
  };
}

function card(told) {
  const title = el("h2", {}, told.name);
  const tag = el("span", { class: "tag" }, told.kind === "base" ? "base" : told.method ?? "unusable");
  const node = el("article", { class: "card", "aria-label": told.name }, el("header", {}, title, tag));
  if (told.unusable) {
    node.append(el("p", { class: "failed" }, `This adapter cannot be used (${told.unusable}); the server's log says more.`));
    return node;
  }
  node.append(facts(told));
  if (told.scores) node.append(scores(told.scores));
  return node;
}

function facts(told) {
  const rows = [
    ["Parameters", told.parameters === undefined ? null : COUNT.format(told.parameters) + (told.rank ? `, rank ${told.rank}` : "")],
    ["Options", told.methods ? options(told.methods) : null],
    ["Size", told.bytes ? `${size(told.bytes)}${told.bits ? `, ${told.bits} bits each` : ""}` : null],
    ["Held as", told.held],
    ["Context", told.context ? `${COUNT.format(told.context)} tokens` : null],
    ["Base", told.base ? [`${told.base.name ?? "not stated"} `, told.base.digest ? digest(told.base.digest) : null] : null],
    ["Digest", told.digest ? digest(told.digest) : "not known"],
    ["Template", told.template],
    ["Steps", told.steps ? COUNT.format(told.steps) : null],
    ["Licence", told.licence ?? "not stated"],
    ["Pictures", { true: "seen", false: "not seen" }[told.sees] ?? "known once it is loaded"],
    ["In memory", told.kind === "base" ? null : told.loaded ? "yes" : "not yet"],
  ];
  const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// The first options of each method that are plain and set.
function options(methods) {
  const plain = (value) => ["string", "number"].includes(typeof value) || value === true;
  return methods.map(({ name: _, ...rest }) => Object.entries(rest).filter(([, value]) => plain(value) && value !== 0)
    .slice(0, 4).map(([name, value]) => (value === true ? name : `${name} ${value}`)).join(", ")).filter(Boolean).join("; ");
}

function digest(text) {
  return el("span", { class: "digest" }, el("code", { title: text }, text.slice(0, 8)), copying("Copy", () => text));
}

function size(bytes) {
  const at = Math.min(3, Math.floor(Math.log(bytes) / Math.log(1000)));
  return `${+(bytes / 1000 ** at).toPrecision(3)} ${["B", "kB", "MB", "GB"][at]}`;
}

function scores({ data, rows, base, adapter }) {
  const names = [...new Set([...Object.keys(adapter), ...Object.keys(base)])];
  const number = (value) => (value === undefined ? "" : String(+value.toPrecision(4)));
  const table = el("table", {},
    el("caption", { class: "quiet" }, `Newest evaluation: ${data}, ${COUNT.format(rows ?? 0)} rows`),
    el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col" }, "base"), el("th", { scope: "col" }, "adapter"))),
    el("tbody", {}, names.map((name) => el("tr", {}, el("th", { scope: "row" }, name.replaceAll("_", " ")), el("td", {}, number(base[name])), el("td", {}, number(adapter[name]))))));
  return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Scores" }, table);
}
