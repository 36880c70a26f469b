// One request over time: its critical path on top, below it every slice that worked on it.

import { colourOf, theme } from "./colours.js";
import { svg, tip } from "./page.js";
import { bytes, chipsName, ms } from "./words.js";

const LEFT = 150;
const RIGHT = 12;
const TOP = 18;
const ROW = 19;
const BAR = 13;
const BARS_MAX = 3000;

/** Draws a request as the server tells it into an SVG element. */
export function drawGantt(root, request) {
  const width = Math.max(360, root.parentElement.clientWidth);
  const rows = [{ name: "critical path", bars: request.path.map(segment) }, ...bySlice(request)];
  const height = TOP + rows.length * ROW + 4;
  root.setAttribute("viewBox", `0 0 ${width} ${height}`);
  root.style.height = `${height}px`;
  const [from, to] = [request.began, Math.max(request.ended, request.began + 0.001)];
  const x = (time) => LEFT + ((Math.min(to, Math.max(from, time)) - from) / (to - from)) * (width - LEFT - RIGHT);
  const paint = theme.requests[colourOf(parseInt(request.trace_id.slice(-8), 16))];
  let left = BARS_MAX;
  const drawn = rows.map(({ name, bars }, index) => {
    const y = TOP + index * ROW;
    const group = svg("g", {}, svg("text", { x: LEFT - 8, y: y + 10, "text-anchor": "end" }, name));
    for (const bar of bars.slice(0, left)) group.append(rectangle(bar, x, y, paint));
    left -= Math.min(left, bars.length);
    return group;
  });
  root.replaceChildren(hatch(), ...axis(from, to, x, height), ...drawn);
}

function segment({ kind, what, began, ended }) {
  const wait = kind === "wait";
  return { began, ended, wait, thin: false, words: `${wait ? "waits for " : ""}${what}` };
}

/** Activities by what they are and where they ran, in the order of their beginnings. */
function bySlice({ activities }) {
  const rows = new Map();
  for (const activity of [...activities].sort((a, b) => a.began - b.began)) {
    const { what, slice, chips = [], step, batch, transport } = activity;
    const kind = what.replace(/ \d+$/, ""); // steps share a row
    const name = chips.length ? `${kind} · ${chipsName(chips)}` : kind;
    const key = `${kind} ${slice} ${chips}`;
    if (!rows.has(key)) rows.set(key, { name, bars: [] });
    const facts = [
      name,
      step === null || step === undefined ? "" : `step ${step}`,
      batch > 1 ? `batch of ${batch}` : "",
      activity.bytes ? bytes(activity.bytes) : "",
      transport ?? "",
    ];
    const thin = Boolean(activity.bytes || transport);
    rows.get(key).bars.push({
      began: activity.began,
      ended: activity.ended,
      thin,
      wait: what === "wait" || what === "stall" || what === "blocked",
      words: facts.filter(Boolean).join(", "),
    });
  }
  return rows.values();
}

function rectangle({ began, ended, wait, thin, words }, x, y, paint) {
  const height = thin ? 5 : BAR;
  const place = { x: x(began), y: y + (BAR - height) / 2, width: Math.max(1, x(ended) - x(began)), height };
  const bar = svg("rect", { class: wait ? "wait" : "bar", ...place, fill: wait ? "url(#hatch)" : paint });
  bar.addEventListener("pointermove", (event) =>
    tip(`${words}\n${ms(ended - began)} ms`, event.clientX, event.clientY),
  );
  bar.addEventListener("pointerleave", () => tip(""));
  return bar;
}

function axis(from, to, x, height) {
  const step =
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20_000].find((one) => (to - from) / one <= 10) ??
    100_000;
  const marks = [];
  for (let after = 0; after <= to - from; after += step) {
    const at = x(from + after);
    marks.push(svg("line", { class: "grid", x1: at, x2: at, y1: TOP - 4, y2: height }));
    marks.push(
      svg(
        "text",
        { class: "axis", x: at, y: 10, "text-anchor": "middle" },
        `${Number(after.toFixed(2))}${after ? "" : " ms"}`,
      ),
    );
  }
  return marks;
}

/** The pattern of waits. */
function hatch() {
  const stripe = svg("path", { d: "M0 6L6 0", stroke: theme.wait, "stroke-width": 1.2 });
  return svg("defs", {}, svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, stripe));
}
