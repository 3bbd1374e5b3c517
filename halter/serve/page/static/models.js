// The models that this server has for whoever asks, and lists to choose one from.

import { json } from "./api.js";
import { el } from "./dom.js";

let models = [];
const pickers = new Set();

export async function loadModels() {
  models = (await json("/v1/models")).data;
  pickers.forEach((fill) => fill());
  return models;
}

export const isBase = (model) => Boolean(model) && !model.parent;
export const known = (name) => models.find((one) => one.id === name);
export const all = () => models;

// A base's digest as far as the page knows it; null: not known, or no base. An adapter's comes with its answer.
export const baseDigest = (name) => (isBase(known(name)) ? known(name).halter.digest ?? null : null);

// Asks for a base's digest again: a server may make it while it serves already.
export async function learnDigest(name) {
  if (!isBase(known(name)) || baseDigest(name) !== null) return;
  try {
    known(name).halter = (await json(`/v1/models/${encodeURIComponent(name)}`)).halter;
  } catch {
    // answers stand without it
  }
}

// A <select> of the models, the base named as such; `wanted`: which of them is chosen at first.
export function picker(wanted = 0) {
  const select = el("select");
  const fill = () => {
    const before = select.value;
    const option = (one) => el("option", { value: one.id }, isBase(one) ? `${one.id} (base)` : one.id);
    select.replaceChildren(...models.map(option));
    if (models.some((one) => one.id === before)) select.value = before;
    else if (models.length) select.value = models[Math.min(wanted, models.length - 1)].id;
    select.dispatchEvent(new Event("change"));
  };
  pickers.add(fill);
  fill();
  return select;
}
