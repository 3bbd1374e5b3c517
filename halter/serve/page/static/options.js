// The options of an answer as a form, and in words.

import { el, labelled } from "./dom.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: "any" }, "0: always the likeliest token"],
  ["top_p", "Top p", { min: 0, max: 1, step: "any" }, null],
  ["max_tokens", "Max tokens", { min: 1, max: 1048576, step: 1 }, null],
  ["seed", "Seed", { min: -9007199254740991, max: 9007199254740991, step: 1 }, "Empty: drawn anew"],
];

// `start`: what stands in the fields; null in its place: fields of a pane, where empty means as for all.
export function optionForm(start) {
  const inputs = {};
  const rows = NUMBERS.map(([name, label, bounds, hint]) => {
    const given = { type: "number", inputmode: "decimal", placeholder: start ? null : "as above", ...bounds };
    inputs[name] = el("input", given);
    inputs[name].value = start?.[name] ?? "";
    return labelled(label, inputs[name], start ? hint : null);
  });
  const system = el("textarea", { rows: 3, placeholder: start ? "None" : "as above" });
  system.value = start?.system ?? "";
  const node = el("div", { class: "options" }, el("div", { class: "numbers" }, rows), labelled("System text", system));
  return { node, read: () => read(inputs, system) };
}

// {temperature, ..., system} of what is filled in; throws where a number is out of its bounds.
function read(inputs, system) {
  const found = {};
  for (const [name, label] of NUMBERS) {
    const input = inputs[name];
    if (!input.checkValidity()) {
      input.reportValidity();
      input.focus();
      throw new RangeError(`${label}: ${input.validationMessage}`);
    }
    if (input.value !== "") found[name] = Number(input.value);
  }
  if (system.value.trim()) found.system = system.value;
  return found;
}

export function bodyOf(model, messages, options) {
  const { system, ...numbers } = options;
  const before = system ? [{ role: "system", content: system }] : [];
  return { model, messages: [...before, ...messages], ...numbers };
}

export function inWords(options) {
  const told = [options.temperature === 0 ? "greedy" : `temperature ${options.temperature ?? 1}`];
  if (options.temperature !== 0 && options.top_p !== undefined && options.top_p !== 1) told.push(`top p ${options.top_p}`);
  if (options.seed !== undefined) told.push(`seed ${options.seed}`);
  if (options.max_tokens !== undefined) told.push(`at most ${options.max_tokens} tokens`);
  if (options.system) told.push("system text");
  return told;
}
