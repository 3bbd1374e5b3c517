// Compare: one prompt to two to four panes at once, so that one batch answers them; differences; votes, blind if wanted.

import { Answer, asking } from "./answer.js";
import { differences } from "./diff.js";
import { button, download, el, labelled, say } from "./dom.js";
import { known, picker } from "./models.js";
import { bodyOf, optionForm } from "./options.js";
import { attaching, messageOf } from "./pictures.js";
import { visible } from "./markdown.js";
import { keepVote, voteBox } from "./votes.js";

const START = { temperature: 0, top_p: 1, max_tokens: 256, seed: 0 };
const LETTERS = "ABCD";
const LEAST = 2;
const MOST = 4;

class Pane {
  answer = null;
  #body = el("div", { class: "pane-body" });
  own = optionForm(null);

  constructor(number, view) {
    this.model = picker(number);
    this.title = el("h2");
    this.left = button("Move left", () => view.moveLeft(this), { class: "plain" });
    this.away = button("Remove", () => view.remove(this), { class: "plain" });
    this.settings = el("div", { class: "pane-head" }, labelled("Model", this.model),
      el("details", {}, el("summary", { class: "quiet" }, "Options of this pane"), this.own.node));
    this.title.id = `pane-${Math.random().toString(36).slice(2)}`;
    this.node = el("section", { class: "pane card", "aria-labelledby": this.title.id },
      el("header", {}, this.title, el("span", { class: "space" }), this.left, this.away), this.settings, this.#body);
  }

  begin(message, shared, hidden, letter) {
    const options = { ...shared, ...this.own.read() };
    const model = this.model.value;
    const name = hidden ? `Answer ${letter}` : model;
    this.answer = new Answer({ model, body: bodyOf(model, [message], options), options, hidden, name });
    this.#body.replaceChildren(this.answer.node);
    this.differ(null);
    return this.answer.run();
  }

  // Shows where the answer differs from that of another pane; null: the answer itself.
  differ(other) {
    if (!this.answer || !other?.answer || other === this) {
      this.answer?.instead();
      return;
    }
    const parts = differences(other.answer.text, this.answer.text);
    const tags = { same: "span", gone: "del", added: "ins" };
    const same = parts.every((part) => part.kind === "same") && el("p", { class: "quiet" }, "The same, word for word.");
    this.answer.instead(el("p", {}, parts.map((part) => el(tags[part.kind], {}, visible(part.text)))), ...(same ? [same] : []));
  }
}

export function compareView(section, trouble) {
  const panes = [];
  let running = false;
  let hidden = false;
  const area = el("textarea", { rows: 2, placeholder: "One prompt for all panes", required: true });
  area.setAttribute("aria-label", "Prompt");
  const options = optionForm(START);
  const pictures = attaching(trouble);
  const grid = el("div", { class: "panes" });
  const adds = button("Add a pane", () => add(), { class: "plain" });
  const blind = el("input", { type: "checkbox" });
  const blindLabel = el("label", { class: "tick" }, blind, "Blind");
  blindLabel.title = "Who answers is hidden, and the panes are shuffled, until you have voted";
  const against = el("select", {}, el("option", { value: "" }, "Answers"));
  const form = el("form", { class: "composer" });
  const { sends, stops, busy } = asking(form, area, send, stop, "Ask all");
  const votes = voteBox();
  const view = { moveLeft, remove };

  against.addEventListener("change", differ);
  form.append(area, pictures.list, el("div", { class: "row" }, ...pictures.nodes, adds, blindLabel, el("div", { class: "row acts" }, stops, sends)));
  const saves = button("Download", () => download("comparison.json", JSON.stringify(panes.map((pane) => pane.answer?.record ?? null), null, 2)), { class: "plain" });
  const under = el("div", { class: "row under", hidden: true }, votes.node, el("span", { class: "space" }), labelled("Show", against), saves);
  section.append(form, el("details", { class: "card shared" }, el("summary", {}, "Options of all panes"), options.node), under, grid, votes.kept);
  add();
  add();

  function add() {
    if (panes.length === MOST) return;
    const pane = new Pane(panes.length, view);
    panes.push(pane);
    pane.model.addEventListener("change", sees);
    lay();
    sees();
  }

  function remove(pane) {
    pane.answer?.stop();
    panes.splice(panes.indexOf(pane), 1);
    lay();
    adds.focus();
  }

  function moveLeft(pane) {
    const at = panes.indexOf(pane);
    panes.splice(at, 1);
    panes.splice(at - 1, 0, pane);
    lay();
    (at > 1 ? pane.left : pane.model).focus();
  }

  function sees() {
    const all = panes.map((pane) => known(pane.model.value)?.halter?.sees);
    pictures.allow(all.includes(false) ? false : null);
  }

  // The panes as they stand: names, buttons, what can be compared with what.
  function lay() {
    grid.replaceChildren(...panes.map((pane) => pane.node));
    grid.dataset.panes = panes.length;
    const locked = running || hidden;
    panes.forEach((pane, at) => {
      pane.title.textContent = LETTERS[at];
      pane.left.hidden = at === 0 || locked;
      pane.away.hidden = panes.length <= LEAST || locked;
      pane.settings.hidden = hidden;
      pane.model.disabled = locked;
    });
    adds.disabled = locked || panes.length === MOST;
    blind.disabled = locked;
    const chosen = against.value;
    against.replaceChildren(el("option", { value: "" }, "Answers"),
      ...panes.map((_, at) => el("option", { value: at }, `Differences from ${LETTERS[at]}`)));
    against.value = Number(chosen) < panes.length ? chosen : "";
    differ();
  }

  function differ() {
    const other = against.value === "" ? null : panes[Number(against.value)];
    panes.forEach((pane) => pane.differ(running ? null : other));
  }

  function stop() {
    panes.forEach((pane) => pane.answer?.stop());
  }

  async function send() {
    const text = area.value;
    if (running || !text.trim()) return;
    let shared;
    try {
      shared = options.read();
      panes.forEach((pane) => pane.own.read());
    } catch {
      return; // the field says what is wrong
    }
    running = true;
    hidden = blind.checked;
    if (hidden) shuffle(panes);
    votes.close();
    busy(true);
    lay();
    const message = messageOf(text, pictures.peek());
    // All are sent before the first is waited for: the server's queue has them together.
    await Promise.all(panes.map((pane, at) => pane.begin(message, shared, hidden, LETTERS[at])));
    running = false;
    busy(false);
    lay();
    under.hidden = false;
    say("All panes have answered");
    const done = panes.map((pane) => pane.answer);
    if (done.every((answer) => answer.error === null)) votes.open(done, (choice) => voted(text, done, choice));
    else unveil();
  }

  function voted(prompt, answers, choice) {
    keepVote({ prompt, answers, choice, blind: hidden });
    unveil();
  }

  function unveil() {
    hidden = false;
    panes.forEach((pane) => pane.answer?.reveal());
    lay();
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !section.hidden) stop();
  });
}

function shuffle(list) {
  for (let last = list.length - 1; last > 0; last -= 1) {
    const other = crypto.getRandomValues(new Uint32Array(1))[0] % (last + 1);
    [list[last], list[other]] = [list[other], list[last]];
  }
}
