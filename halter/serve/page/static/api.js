// What the page asks this server: with the key, whole or streamed, and what is told when that fails.

import { session } from "./dom.js";

const KEY = "halter.key";
let key = session(KEY);

export function useKey(given) {
  key = given;
  session(KEY, given);
}

export const hasKey = () => Boolean(key);

export class Failure extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const GONE = "The server cannot be reached.";
const CUT = "The connection ended before the answer was whole.";

async function asked(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(GONE);
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch {
    // no error object: the status says what there is
  }
  if (answer.status === 401) document.dispatchEvent(new Event("halter:key"));
  throw new Failure(told.message ?? `The server answered ${answer.status}.`, answer.status, told.code ?? null);
}

export async function json(path) {
  return (await asked(path)).json();
}

// Lines of a run's log from a byte on: {lines, next, file}.
export async function part(path) {
  const answer = await asked(path);
  return {
    lines: await answer.text(),
    next: Number(answer.headers.get("x-halter-next")),
    file: answer.headers.get("x-halter-file"),
  };
}

// Server-sent events from text that comes in any pieces.
export class Events {
  #rest = "";

  // The data of each event that is whole now.
  add(text) {
    this.#rest += text;
    const whole = [];
    for (;;) {
      const end = /\r?\n\r?\n/.exec(this.#rest);
      if (!end) return whole;
      const lines = this.#rest.slice(0, end.index).split(/\r?\n/);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).replace(/^ /, ""));
      if (data.length) whole.push(data.join("\n"));
    }
  }
}

// Asks for one streamed chat. hear.begun(adapter): the header that says who answers; hear.text(piece).
// Gives {finish, usage, adapters, contextFull}. Throws Failure; AbortError where `signal` ends it.
export async function chat(body, signal, hear) {
  const answer = await asked("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  hear.begun(answer.headers.get("x-halter-adapter"));
  const told = { finish: null, usage: null, adapters: null, contextFull: false };
  const events = new Events();
  const letters = new TextDecoder("utf-8");
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Failure(CUT);
    });
    if (done) throw new Failure(CUT);
    for (const data of events.add(letters.decode(value, { stream: true }))) {
      if (data === "[DONE]") return told;
      heard(JSON.parse(data), told, hear);
    }
  }
}

function heard(event, told, hear) {
  if (event.error) throw new Failure(event.error.message, 200, event.error.code);
  const choice = event.choices[0];
  if (choice?.delta?.content) hear.text(choice.delta.content);
  if (choice?.finish_reason) told.finish = choice.finish_reason;
  if (event.usage) told.usage = event.usage;
  if (event.halter) {
    told.adapters = event.halter.adapters;
    told.contextFull = Boolean(event.halter.context_full);
  }
}

// What asks the same from a shell; the key itself is never shown.
export function asCurl(body) {
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const shown = hasKey() ? ` -H "Authorization: Bearer $HALTER_KEY"` : "";
  const to = new URL("/v1/chat/completions", location.href);
  return `curl ${to}${shown} -H "Content-Type: application/json" -d ${quoted}`;
}

// The same for OpenAI's client. What JSON writes for a string, Python reads as the same string.
export function asPython(body) {
  const given = Object.entries(body).map(([name, value]) => `    ${name}=${python(value)},\n`).join("");
  const key = hasKey() ? `os.environ["HALTER_KEY"]` : `"none"`;
  const head = `${hasKey() ? "import os\n\n" : ""}from openai import OpenAI\n\n`;
  const client = `client = OpenAI(base_url=${JSON.stringify(new URL("/v1", location.href).href)}, api_key=${key})\n`;
  return `${head}${client}answer = client.chat.completions.create(\n${given})\nprint(answer.choices[0].message.content)\n`;
}

const PYTHON = new Map([[true, "True"], [false, "False"], [null, "None"]]);

function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value && typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
  }
  return PYTHON.get(value) ?? JSON.stringify(value);
}
