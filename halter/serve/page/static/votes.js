// Votes on answers: kept in this browser alone, to be taken out as a file.

import { button, download, el, local, say } from "./dom.js";

const VOTES = "halter.votes";
const MOST = 5000;
const shown = new Set();

function votes() {
  try {
    const kept = JSON.parse(local(VOTES) ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

function put(list) {
  local(VOTES, list.length ? JSON.stringify(list.slice(-MOST)) : null);
  shown.forEach((show) => show());
}

// `choice`: the number of the best answer, "alike" or "none". The answers' texts are not kept.
export function keepVote({ prompt, answers, choice, blind }) {
  const panes = answers.map(({ model, versions, options }) => ({ model, versions, options }));
  put([...votes(), { at: new Date().toISOString(), prompt, panes, choice, blind }]);
}

export function voteBox() {
  const node = el("fieldset", { class: "vote", hidden: true });
  const kept = el("div", { class: "kept row" });
  const show = () => {
    const list = votes();
    kept.hidden = list.length === 0;
    kept.replaceChildren(
      el("p", { class: "quiet" }, `${list.length} vote${list.length === 1 ? "" : "s"} kept in this browser: ${tally(list)}`),
      el("span", { class: "space" }),
      button("Export the votes", () => download("votes.json", JSON.stringify(list, null, 2)), { class: "plain" }),
      button("Forget them", () => put([]), { class: "plain" }),
    );
  };
  shown.add(show);
  show();
  return {
    node,
    kept,
    close() {
      node.hidden = true;
    },
    open(answers, voted) {
      const choose = (choice, words) => button(words, () => {
        node.hidden = true;
        voted(choice);
        say("The vote is kept in this browser");
      });
      node.replaceChildren(
        el("legend", { class: "quiet" }, "Which is best?"),
        ...answers.map((_, at) => choose(at, "ABCD"[at])),
        choose("alike", "Alike"),
        choose("none", "None"),
      );
      node.hidden = false;
    },
  };
}

function tally(list) {
  const counts = new Map();
  for (const vote of list) {
    const name = vote.panes?.[vote.choice]?.model ?? (vote.choice === "alike" ? "alike" : "none");
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${name} ${count}`).join(", ");
}
