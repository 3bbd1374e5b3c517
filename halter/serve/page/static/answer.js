// One answer as it comes: its text, who gives it, with which options, and how that went.

import { Failure, asCurl, asPython, chat } from "./api.js";
import { button, copying, el, say } from "./dom.js";
import { Growing } from "./markdown.js";
import { baseDigest, learnDigest } from "./models.js";
import { inWords } from "./options.js";

const FINISHES = { stop: "ended by itself", length: "cut at max tokens", stopped: "stopped" };

// The node of an answer by `model`; `hidden`: who it is stays unsaid until `reveal`.
export class Answer {
  #body = el("div", { class: "said", dir: "auto" });
  #who = el("span", { class: "who" });
  #differs = el("div", { class: "said differs", dir: "auto", hidden: true });
  #facts = el("p", { class: "facts" });
  #tools = el("div", { class: "tools" });
  #stop = new AbortController();
  #growing = new Growing(this.#body);
  #timing = { began: 0, first: 0, ended: 0, pieces: 0 };
  version = "";
  finish = null;
  error = null;
  told = null;

  constructor({ model, body, options, name, hidden = false }) {
    Object.assign(this, { model, body, options, hidden });
    this.name = name ?? model;
    this.#who.textContent = this.name;
    this.#body.classList.add("running");
    const head = el("header", {}, this.#who);
    this.node = el("article", { class: "answer" }, head, this.#body, this.#differs, this.#facts, this.#tools);
    this.node.setAttribute("aria-label", `Answer of ${this.name}`);
    this.#tellFacts();
  }

  get text() {
    return this.#growing.text;
  }

  stop() {
    this.#stop.abort();
  }

  // Asks and shows; never throws: what failed stands in the answer.
  async run() {
    const timing = this.#timing;
    timing.began = performance.now();
    const hear = {
      begun: (adapter) => {
        this.version = adapter ?? "";
        this.#tellFacts();
      },
      text: (piece) => {
        timing.first ||= performance.now();
        timing.pieces += 1;
        this.#growing.add(piece);
      },
    };
    try {
      this.told = await chat(this.body, this.#stop.signal, hear);
      this.finish = this.told.finish;
    } catch (error) {
      if (error.name === "AbortError") this.finish = "stopped";
      else if (error instanceof Failure) this.error = error.message;
      else {
        this.error = "The page could not show this answer.";
        console.error(error);
      }
    }
    timing.ended = performance.now();
    this.#end();
    if (!this.versions.length) learnDigest(this.model).then(() => this.#tellFacts());
  }

  #end() {
    this.#growing.show();
    this.#body.classList.remove("running");
    if (this.error) this.node.append(el("p", { class: "failed" }, this.error));
    else if (!this.text) this.#body.append(el("p", { class: "quiet" }, "The answer is empty."));
    this.#tellFacts();
    this.#tools.append(copying("Copy", () => this.text));
    if (!this.hidden) this.#offerRequests();
    const count = this.told?.usage ? `, ${this.told.usage.completion_tokens} tokens` : "";
    say(this.error ? `${this.name}: ${this.error}` : `${this.name} answered${count}`);
  }

  // Shows something in the answer's place; nothing: the answer again.
  instead(...nodes) {
    this.#differs.replaceChildren(...nodes);
    this.#differs.hidden = nodes.length === 0;
    this.#body.hidden = nodes.length > 0;
  }

  reveal() {
    if (!this.hidden) return;
    this.hidden = false;
    this.name = this.model;
    this.#who.textContent = this.model;
    this.node.setAttribute("aria-label", `Answer of ${this.model}`);
    this.#offerRequests();
    this.#tellFacts();
  }

  #offerRequests() {
    this.#tools.append(copying("Copy as curl", () => asCurl(this.body)), copying("Copy as Python", () => asPython(this.body)));
  }

  // The versions that answered: of the answer itself, else of its header, else of what is known of the base.
  get versions() {
    const adapters = this.told?.adapters;
    if (adapters?.length) return adapters.map((one) => `${one.name}@${one.digest.slice(0, 8)}`);
    if (this.version) return this.version.split(",");
    const digest = baseDigest(this.model);
    return digest ? [`${this.model}@${digest.slice(0, 8)}`] : [];
  }

  get speed() {
    const { began, first, ended } = this.#timing;
    const tokens = this.told?.usage?.completion_tokens ?? 0;
    const seconds = (ended - first) / 1000;
    return { first: first ? (first - began) / 1000 : null, rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null };
  }

  #tellFacts() {
    const facts = this.hidden ? [] : [el("code", {}, this.versions.join(", ") || (this.finish || this.error ? "digest not known" : "..."))];
    facts.push(...inWords(this.options));
    if (this.told?.usage) facts.push(`${this.told.usage.completion_tokens} tokens`);
    const { first, rate } = this.speed;
    if (this.finish && first !== null) facts.push(`first after ${first.toFixed(2)} s`);
    if (rate !== null) facts.push(`${rate.toFixed(1)} tokens/s`);
    if (this.finish) facts.push(this.told?.contextFull ? "context full" : FINISHES[this.finish] ?? this.finish);
    this.#facts.replaceChildren(...facts.map((fact) => el("span", {}, fact)));
  }

  // As plain data, for a download.
  get record() {
    const { model, options, versions, text, finish, error, speed } = this;
    return { model, versions, options, text, finish, error, usage: this.told?.usage ?? null, ...speed };
  }
}

// The buttons of a form that asks, and the keys that do the same. `running()`: whether there is something to stop.
export function asking(form, area, send, stop, words = "Send") {
  const sends = el("button", { type: "submit", class: "main" }, words, el("kbd", {}, "Ctrl Enter"));
  const stops = button(["Stop ", el("kbd", {}, "Esc")], stop, { disabled: true });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  });
  const busy = (is) => {
    sends.disabled = is;
    stops.disabled = !is;
  };
  return { sends, stops, busy };
}
