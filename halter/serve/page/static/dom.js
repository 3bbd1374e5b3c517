// Nodes from tags, attributes and children. A string becomes a text node, never markup: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat(9).filter((one) => one !== null && one !== undefined && one !== false));
  return node;
}

export function el(tag, given = {}, ...children) {
  return filled(document.createElement(tag), given, children);
}

export function svg(tag, given = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), given, children);
}

export function button(text, act, given = {}) {
  return el("button", { type: "button", onclick: act, ...given }, text);
}

let numbered = 0;

export function labelled(text, input, hint = null) {
  input.id ||= `f${++numbered}`;
  const told = hint && el("span", { class: "quiet", id: `${input.id}h` }, hint);
  if (told) input.setAttribute("aria-describedby", told.id);
  return el("div", { class: "field" }, el("label", { for: input.id }, text), input, told);
}

// Said by screen readers, once; what grows token by token is never said.
export function say(text) {
  document.getElementById("status").textContent = text;
}

export function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A button that copies what `text` gives, and says so in its own words for a moment.
export function copying(words, text) {
  const made = button(words, async () => {
    let told = "Copied";
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      told = "Not allowed";
    }
    made.textContent = told;
    say(told);
    setTimeout(() => (made.textContent = words), 1500);
  }, { class: "plain" });
  return made;
}

export function kept(store, name, value) {
  // A browser may forbid its stores; then nothing is kept.
  try {
    if (value === null) store().removeItem(name);
    else if (value !== undefined) store().setItem(name, value);
    return store().getItem(name);
  } catch {
    return null;
  }
}

export const session = (name, value) => kept(() => sessionStorage, name, value);
export const local = (name, value) => kept(() => localStorage, name, value);
