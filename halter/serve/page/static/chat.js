// Chat: one conversation, each answer by the model that is chosen when it is asked.

import { Answer, asking } from "./answer.js";
import { button, download, el, labelled } from "./dom.js";
import { known, picker } from "./models.js";
import { bodyOf, optionForm } from "./options.js";
import { attaching, messageOf } from "./pictures.js";
import { visible } from "./markdown.js";

const START = { temperature: 0, top_p: 1, max_tokens: 256, seed: 0 };

export function chatView(section, trouble) {
  const turns = []; // {message, answer}
  let running = null;
  const empty = el("p", { class: "empty" }, "Ask something. Nothing of this is kept when the tab is closed.");
  const log = el("div", { class: "log", role: "log", "aria-live": "off", "aria-label": "Conversation", tabindex: "0" }, empty);
  const area = el("textarea", { rows: 3, placeholder: "Message", required: true });
  area.setAttribute("aria-label", "Message");
  const model = picker(1);
  const options = optionForm(START);
  const pictures = attaching(trouble);
  model.addEventListener("change", () => pictures.allow(known(model.value)?.halter?.sees));
  pictures.allow(null);

  const form = el("form", { class: "composer" });
  const { sends, stops, busy } = asking(form, area, send, () => running?.stop());
  const clears = button("New conversation", () => {
    running?.stop();
    turns.length = 0;
    log.replaceChildren(empty);
    area.focus();
  }, { class: "plain" });
  const saves = button("Download", () => download("conversation.json", JSON.stringify(record(), null, 2)), { class: "plain" });
  form.append(area, pictures.list,
    el("div", { class: "row" }, labelled("Model", model), ...pictures.nodes, el("div", { class: "row acts" }, stops, sends)));
  const panel = el("details", { class: "card side", open: innerWidth > 900 }, el("summary", {}, "Options"), options.node,
    el("div", { class: "row" }, clears, saves));
  section.append(el("div", { class: "chat" }, el("div", { class: "talk" }, log, form), panel));

  function history() {
    const kept = turns.filter((turn) => turn.answer.text);
    return kept.flatMap(({ message, answer }) => [message, { role: "assistant", content: answer.text }]);
  }

  function record() {
    return turns.map(({ message, answer }) => ({ message, answer: answer.record }));
  }

  async function send() {
    const text = area.value;
    if (running || !text.trim() || !model.value) return;
    let chosen;
    try {
      chosen = options.read();
    } catch {
      return; // the field says what is wrong
    }
    const message = messageOf(text, pictures.take());
    const body = bodyOf(model.value, [...history(), message], chosen);
    const answer = new Answer({ model: model.value, body, options: chosen });
    turns.push({ message, answer });
    empty.remove();
    log.append(asks(text, message), answer.node);
    log.scrollTop = log.scrollHeight;
    area.value = "";
    running = answer;
    busy(true);
    const follow = new MutationObserver(() => {
      if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
    });
    follow.observe(answer.node, { childList: true, subtree: true });
    await answer.run();
    follow.disconnect();
    running = null;
    busy(false);
    if (!answer.text && answer.error && !area.value) area.value = text;
  }

  function asks(text, message) {
    const shown = Array.isArray(message.content) ? message.content.filter((part) => part.image_url) : [];
    const images = shown.map((part) => el("img", { src: part.image_url.url, alt: "Attached picture", height: 96 }));
    return el("article", { class: "question", "aria-label": "You asked" }, images, el("p", { dir: "auto" }, visible(text)));
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !section.hidden) running?.stop();
  });
}
