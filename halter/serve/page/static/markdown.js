// A subset of Markdown as nodes: paragraphs, headings, lists, quotes, rules, tables, code, emphasis and links.
// HTML stays text. Pictures stay text. Links are http or https and show their host. Work grows with the text's length.

import { copying, el } from "./dom.js";

const LONG_LINE = 4000;
const DEEP = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]{0,30})/;
const HEADING = /^ {0,3}(#{1,6}) +(\S.*)$/;
const ITEM = /^( {0,16})([-*+]|\d{1,9}[.)]) +(\S.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DELIMITERS = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;

const blank = (line) => line.trim() === "";
const begins = (line, form) => (line.length > LONG_LINE ? null : form.exec(line));

// [{kind, line, ...}] of a text; `line` is the number of a block's first line.
export function blocksOf(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) at += 1;
    else {
      const [block, next] = blockAt(lines, at);
      blocks.push({ ...block, line: at });
      at = next;
    }
  }
  return blocks;
}

function blockAt(lines, at) {
  const line = lines[at];
  let found;
  if ((found = begins(line, FENCE))) return fenced(lines, at, found);
  if ((found = begins(line, HEADING))) {
    return [{ kind: "heading", level: found[1].length, text: found[2].trimEnd().replace(/ #+$/, "") }, at + 1];
  }
  if (begins(line, RULE)) return [{ kind: "rule" }, at + 1];
  if (begins(line, QUOTE)) return quoted(lines, at);
  if (begins(line, ITEM)) return listed(lines, at);
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && begins(lines[at + 1], DELIMITERS)) {
    return tabled(lines, at);
  }
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !interrupts(lines[end])) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).join("\n") }, end];
}

const interrupts = (line) => [FENCE, HEADING, QUOTE, ITEM].some((form) => begins(line, form));

function fenced(lines, at, found) {
  const mark = found[1];
  let end = at + 1;
  const closes = (line) => line.trim().length >= mark.length && [...line.trim()].every((letter) => letter === mark[0]);
  while (end < lines.length && !(lines[end].length <= LONG_LINE && closes(lines[end]))) end += 1;
  return [{ kind: "code", language: found[2], text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function quoted(lines, at) {
  const inside = [];
  let found;
  while (at < lines.length && (found = begins(lines[at], QUOTE))) {
    inside.push(found[1]);
    at += 1;
  }
  return [{ kind: "quote", text: inside.join("\n") }, at];
}

function listed(lines, at) {
  const items = [];
  for (; at < lines.length; at += 1) {
    const found = begins(lines[at], ITEM);
    if (found) {
      items.push({ deep: found[1].length, number: parseInt(found[2], 10), text: found[3] });
    } else if (blank(lines[at])) {
      const after = lines[at + 1] ?? "";
      if (!begins(after, ITEM) && !/^ {2,}\S/.test(after)) break;
    } else if (/^ {2,}\S/.test(lines[at])) items.at(-1).text += `\n${lines[at].trim()}`;
    else break;
  }
  return [{ kind: "list", items }, at];
}

function tabled(lines, at) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").slice(0, 40).map((cell) => cell.trim());
  const head = cells(lines[at]);
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|") && !blank(lines[at]); at += 1) rows.push(cells(lines[at]));
  return [{ kind: "table", head, rows: rows.map((row) => head.map((_, place) => row[place] ?? "")) }, at];
}

export function nodeOf(block, deep = 0) {
  // A model's headings are no headings of the page, whose outline they would break.
  if (block.kind === "heading") return el("p", { class: `head-${Math.min(4, block.level)}` }, inline(block.text));
  if (block.kind === "rule") return el("hr");
  if (block.kind === "code") return coded(block);
  if (block.kind === "list") return nested(block.items);
  if (block.kind === "table") {
    const row = (cells, tag) => el("tr", {}, cells.map((cell) => el(tag, {}, inline(cell))));
    const table = el("table", {}, el("thead", {}, row(block.head, "th")));
    table.append(el("tbody", {}, block.rows.map((cells) => row(cells, "td"))));
    return el("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, table);
  }
  if (block.kind === "quote") {
    const inside = deep < DEEP ? blocksOf(block.text).map((one) => nodeOf(one, deep + 1)) : [block.text];
    return el("blockquote", {}, inside);
  }
  return el("p", {}, inline(block.text));
}

function coded(block) {
  const head = el("div", { class: "code-head" }, el("span", {}, block.language), copying("Copy", () => block.text));
  const label = block.language ? `Code, ${block.language}` : "Code";
  const code = el("pre", { tabindex: "0", role: "group", "aria-label": label }, el("code", {}, visible(block.text, UNSEEN)));
  return el("div", { class: "code" }, head, code);
}

// Items by their indentation as lists within lists.
function nested(items) {
  const made = (item) => {
    const ordered = !Number.isNaN(item.number);
    return el(ordered ? "ol" : "ul", ordered && item.number !== 1 ? { start: item.number } : {});
  };
  const top = made(items[0]);
  const open = [{ deep: items[0].deep, list: top }];
  for (const item of items) {
    while (open.length > 1 && item.deep < open.at(-1).deep) open.pop();
    if (item.deep > open.at(-1).deep + 1 && open.at(-1).list.lastChild && open.length < DEEP) {
      const list = made(item);
      open.at(-1).list.lastChild.append(list);
      open.push({ deep: item.deep, list });
    }
    open.at(-1).list.append(el("li", {}, inline(item.text)));
  }
  return top;
}

// What cannot be seen and changes how text is read: bidirectional controls and tags anywhere, in code also what has no
// width.
const TURNING = /[\u202a-\u202e\u2066-\u2069]|[\u{e0000}-\u{e007f}]/gu;
const UNSEEN = /[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]|[\u{e0000}-\u{e007f}]/gu;

export function visible(text, which = TURNING) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(which)) {
    if (found.index > from) nodes.push(text.slice(from, found.index));
    const name = `U+${found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    nodes.push(el("span", { class: "invisible" }, name));
    from = found.index + found[0].length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

const SPECIAL = /[\\`*_~[!h]/g;
const ADDRESS = /https?:\/\/[^\s<>"'`\\^{}|\u0000-\u001f\u007f]{1,2000}/iy;
const ESCAPED = /[\\`*_~[\]!#()|>-]/;
const LETTER = /[\p{L}\p{N}_]/u;

export function inline(text, deep = 0) {
  const nodes = [];
  const missing = new Set();
  let plain = "";
  let at = 0;
  const put = (node) => {
    nodes.push(...visible(plain), node);
    plain = "";
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const [node, end] = inlineAt(text, at, missing, deep);
    if (typeof node === "string") plain += node;
    else put(node);
    at = end;
  }
  nodes.push(...visible(plain));
  return nodes;
}

// [what stands at a special letter, where it ends]; a string is plain text.
function inlineAt(text, at, missing, deep) {
  const letter = text[at];
  if (letter === "\\") return ESCAPED.test(text[at + 1] ?? "") ? [text[at + 1], at + 2] : ["\\", at + 1];
  if (letter === "`") return codeSpan(text, at, missing);
  if (letter === "h") return address(text, at);
  if (letter === "[") return link(text, at, at, deep) ?? ["[", at + 1];
  if (letter === "!") return (text[at + 1] === "[" && link(text, at, at + 1, deep)) || ["!", at + 1];
  const mark = text[at + 1] === letter ? letter + letter : letter;
  if (mark === "~" || deep >= DEEP) return [mark, at + mark.length];
  return emphasis(text, at, mark, missing, deep);
}

function codeSpan(text, at, missing) {
  let size = 1;
  while (text[at + size] === "`") size += 1;
  const mark = "`".repeat(size);
  let end = missing.has(mark) ? -1 : text.indexOf(mark, at + size);
  while (end >= 0 && text[end + size] === "`") {
    let run = end;
    while (text[run] === "`") run += 1;
    end = text.indexOf(mark, run);
  }
  if (end < 0) {
    missing.add(mark);
    return [mark, at + size];
  }
  return [el("code", {}, visible(text.slice(at + size, end), UNSEEN)), end + size];
}

function emphasis(text, at, mark, missing, deep) {
  const from = at + mark.length;
  const end = missing.has(mark) ? -1 : text.indexOf(mark, from);
  if (end < 0) missing.add(mark);
  const inside = end < 0 ? "" : text.slice(from, end);
  const within = mark[0] === "_" && (LETTER.test(text[at - 1] ?? "") || LETTER.test(text[end + mark.length] ?? ""));
  if (!inside || inside !== inside.trim() || within) return [mark, from];
  const tag = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "s" }[mark];
  return [el(tag, {}, inline(inside, deep + 1)), end + mark.length];
}

function address(text, at) {
  ADDRESS.lastIndex = at;
  const found = LETTER.test(text[at - 1] ?? "") ? null : ADDRESS.exec(text);
  if (!found) return ["h", at + 1];
  const url = found[0].replace(/[.,;:!?)\]*_~]+$/, "");
  const to = safe(url);
  return to ? [anchor(to, [url]), at + url.length] : ["h", at + 1];
}

// A link, or a picture's words and address as text: nothing is loaded because a model says so.
function link(text, from, bracket, deep) {
  const near = text.slice(bracket, bracket + 2500);
  const found = /^\[([^[\]\n]{0,400})\]\(\s{0,9}<?([^\s()<>]{1,2000})>?(?:\s{1,9}"[^"\n]{0,200}")?\s{0,9}\)/.exec(near);
  if (!found) return null;
  const end = bracket + found[0].length;
  if (bracket !== from) return [el("span", { class: "picture" }, visible(`${found[1]} (${found[2]})`)), end];
  const to = safe(found[2]);
  if (!to) return [text.slice(from, end), end];
  const words = found[1] || to.href;
  const host = words.includes(to.host) ? null : el("span", { class: "quiet" }, ` (${to.host})`);
  return [el("span", {}, anchor(to, deep < DEEP ? inlineWords(words) : [words]), host), end];
}

// The words of a link hold no links.
const inlineWords = (words) => visible(words.replace(/[*_`~]{1,2}/g, ""));

function safe(address) {
  try {
    const url = new URL(address.replace(/[\u0000-\u0020\u007f]/g, ""));
    return ["http:", "https:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}

function anchor(url, words) {
  return el("a", { href: url.href, rel: "noopener noreferrer nofollow", target: "_blank" }, words);
}

// An answer that grows: what is certain is made into nodes once, only what may still change is made anew.
export class Growing {
  #node;
  #from = 0;
  #tail = [];
  #timer = 0;
  #wait = 50;
  text = "";
  parsed = 0; // letters looked at, of all renderings together

  constructor(node) {
    this.#node = node;
  }

  add(piece) {
    this.text += piece;
    this.#timer ||= setTimeout(() => this.show(false), this.#wait);
  }

  // Brings the node up to the text; `whole`: nothing more comes.
  show(whole = true) {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const began = performance.now();
    const rest = this.text.slice(this.#from);
    this.parsed += rest.length;
    const blocks = blocksOf(rest);
    const last = rest.split("\n").length - 1;
    let open = whole ? blocks.length : Math.max(0, blocks.length - 1);
    // The last line is not whole: what it becomes may belong to the block before it.
    if (!whole && open > 0 && blocks[open].line === last) open -= 1;
    const nodes = blocks.map((block) => nodeOf(block));
    this.#tail.forEach((node) => node.remove());
    this.#node.append(...nodes);
    this.#tail = nodes.slice(open);
    if (open > 0) this.#from += open < blocks.length ? offset(rest, blocks[open].line) : rest.length;
    this.#wait = Math.max(50, 4 * (performance.now() - began));
  }
}

function offset(text, line) {
  let at = 0;
  for (; line > 0; line -= 1) at = text.indexOf("\n", at) + 1;
  return at;
}
