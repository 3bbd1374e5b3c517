// Pictures of this machine as data URIs: nothing is fetched, by the page or by the server.

import { button, el } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const MOST_BYTES = 2 << 20;

export function attaching(tell) {
  let pictures = [];
  const input = el("input", { type: "file", accept: KINDS.join(","), multiple: true, hidden: true });
  const opener = button("Attach a picture", () => input.click(), { class: "plain" });
  const list = el("ul", { class: "pictures" });
  const show = () => {
    list.replaceChildren(...pictures.map((one) => el("li", {},
      el("img", { src: one.url, alt: one.name, width: 56, height: 56 }),
      button("Remove", () => {
        pictures = pictures.filter((other) => other !== one);
        show();
        opener.focus();
      }, { class: "plain", "aria-label": `Remove ${one.name}` }))));
    list.hidden = pictures.length === 0;
  };
  input.addEventListener("change", async () => {
    for (const file of input.files) {
      if (!KINDS.includes(file.type)) tell(`${file.name} is no picture that can be sent.`);
      else if (file.size > MOST_BYTES) tell(`${file.name} is larger than 2 MiB.`);
      else pictures.push({ name: file.name, url: await read(file) });
    }
    input.value = "";
    show();
  });
  show();
  return {
    nodes: [opener, input],
    list,
    // `sees`: true, false, or null where nobody knows yet
    allow(sees) {
      opener.disabled = sees === false;
      opener.title = sees === false ? "This model sees no pictures" : "";
    },
    take() {
      const taken = pictures;
      pictures = [];
      show();
      return taken;
    },
    peek: () => pictures,
  };
}

function read(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

// A user's message of a text and pictures.
export function messageOf(text, pictures) {
  if (!pictures.length) return { role: "user", content: text };
  const parts = pictures.map((one) => ({ type: "image_url", image_url: { url: one.url } }));
  return { role: "user", content: [...parts, { type: "text", text }] };
}
