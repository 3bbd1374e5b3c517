// The page: which view is shown, the key, light or dark.

import { hasKey, useKey } from "./api.js";
import { cardsView } from "./cards.js";
import { chatView } from "./chat.js";
import { compareView } from "./compare.js";
import { local } from "./dom.js";
import { all, isBase, loadModels } from "./models.js";
import { watchView } from "./watch.js";

const get = (id) => document.getElementById(id);
const VIEWS = { chat: chatView, compare: compareView, watch: watchView, adapters: cardsView };
const NAMES = Object.keys(VIEWS);
const shown = {};

function trouble(text) {
  get("trouble").textContent = text ?? "";
  get("trouble").hidden = !text;
}

// The fragment is a view's name, or a key that somebody put behind the address; a key does not stay there.
function readFragment() {
  const given = /^#key=(.+)$/.exec(location.hash);
  if (given) {
    useKey(decodeURIComponent(given[1]));
    history.replaceState(null, "", location.pathname);
  }
}

function show() {
  const wanted = location.hash.slice(1);
  const name = NAMES.includes(wanted) ? wanted : NAMES[0];
  for (const one of NAMES) get(one).hidden = one !== name || !get("entry").hidden;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${name[0].toUpperCase()}${name.slice(1)} · Halter`;
  shown[name]?.();
}

function askForKey() {
  get("entry").hidden = false;
  show();
  get("key").focus();
}

async function open() {
  trouble(null);
  try {
    await loadModels();
  } catch (error) {
    if (error.status !== 401) trouble(error.message);
    else if (hasKey()) trouble("This key is not known here.");
    if (error.status === 401) askForKey();
    return;
  }
  get("entry").hidden = true;
  get("forget").hidden = !hasKey();
  const base = all().find(isBase);
  const adapters = all().length - (base ? 1 : 0);
  get("served").textContent = `${base ? base.id : "no base"}, ${adapters} adapter${adapters === 1 ? "" : "s"}`;
  show();
}

const THEMES = ["system", "light", "dark"];

function theme(name) {
  document.documentElement.dataset.theme = name;
  get("theme").textContent = `Theme: ${name}`;
  local("halter.theme", name);
}

readFragment();
theme(THEMES.includes(local("halter.theme")) ? local("halter.theme") : "system");
get("theme").addEventListener("click", () => {
  theme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
});
get("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(get("key").value.trim());
  get("key").value = "";
  open();
});
get("forget").addEventListener("click", () => {
  useKey(null);
  location.reload();
});
document.addEventListener("halter:key", askForKey);
addEventListener("hashchange", () => {
  readFragment();
  show();
});
for (const [name, view] of Object.entries(VIEWS)) shown[name] = view(get(name), trouble);
open();
