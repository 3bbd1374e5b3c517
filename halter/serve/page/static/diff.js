// Where two texts differ, word by word (Myers, "An O(ND) difference algorithm", 1986).

const MOST_CHANGES = 800;

export function words(text) {
  return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
}

// [{kind: "same" | "gone" | "added", text}]: from one text to the other. Texts that differ in more places than are worth
// showing are told as wholly different.
export function differences(before, after) {
  const a = words(before);
  const b = words(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end += 1;
  const middle = changes(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const parts = [];
  const put = (kind, text) => {
    if (!text) return;
    if (parts.at(-1)?.kind === kind) parts.at(-1).text += text;
    else parts.push({ kind, text });
  };
  put("same", a.slice(0, start).join(""));
  for (const [kind, word] of middle) put(kind, word);
  put("same", end ? a.slice(-end).join("") : "");
  return joined(parts);
}

// Changes with nothing but a space between them as one: they read better whole.
function joined(parts) {
  const made = [];
  let [gone, added] = ["", ""];
  const put = (kind, text) => text && made.push({ kind, text });
  const close = () => {
    put("gone", gone);
    put("added", added);
    [gone, added] = ["", ""];
  };
  parts.forEach(({ kind, text }, at) => {
    if (kind === "gone") gone += text;
    else if (kind === "added") added += text;
    else if (/^\s+$/.test(text) && (gone || added) && at < parts.length - 1) [gone, added] = [gone + text, added + text];
    else {
      close();
      put("same", text);
    }
  });
  close();
  return made;
}

function changes(a, b) {
  const whole = () => [...a.map((word) => ["gone", word]), ...b.map((word) => ["added", word])];
  if (!a.length || !b.length) return whole();
  const reached = new Map([[1, 0]]); // diagonal: how far in a
  const trace = [];
  for (let d = 0; d <= MOST_CHANGES; d += 1) {
    trace.push(new Map(reached));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reached.get(k - 1) < reached.get(k + 1));
      let x = down ? reached.get(k + 1) : reached.get(k - 1) + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x += 1;
      reached.set(k, x);
      if (x >= a.length && x - k >= b.length) return walked(a, b, trace);
    }
  }
  return whole();
}

// The way back through what was reached after each number of changes.
function walked(a, b, trace) {
  const steps = [];
  let x = a.length;
  let y = b.length;
  for (let d = trace.length - 1; d >= 0; d -= 1) {
    const reached = trace[d];
    const k = x - y;
    const down = k === -d || (k !== d && reached.get(k - 1) < reached.get(k + 1));
    const fromX = down ? reached.get(k + 1) : reached.get(k - 1);
    const fromY = fromX - (down ? k + 1 : k - 1);
    while (x > fromX && y > fromY && x > 0 && y > 0) steps.push(["same", a[(x -= 1, y -= 1, x)]]);
    if (d > 0) steps.push(down ? ["added", b[fromY]] : ["gone", a[fromX]]);
    [x, y] = [fromX, fromY];
  }
  return steps.reverse();
}
