// The plan's prediction beside what was measured, slice by slice.

import { byId, html, say } from "./page.js";
import { ms, percent, rate, sliceName } from "./words.js";

/** Deviation from which a slice is pointed out. */
const FAR = 0.1;

export class Plan {
  #body = byId("plan").tBodies[0];
  #rows = []; // { slices, cells }
  #latency;
  #rate;

  constructor(state) {
    this.state = state;
    byId("plan-each").addEventListener("change", () => {
      this.draw();
      this.update();
    });
  }

  /** Makes the rows: of every slice, or of those that are planned alike. */
  draw() {
    if (!this.state.hello) return;
    const each = byId("plan-each").checked;
    const groups = new Map();
    for (const slice of this.state.slices) {
      const { stage, layers, split, predicted_ms: planned, chips, pipeline, index } = slice;
      const alike = each ? [pipeline, index] : [stage, layers, split, planned?.toFixed(3), chips.length];
      const name = alike.join("|");
      groups.set(name, [...(groups.get(name) ?? []), slice]);
    }
    this.#rows = [...groups.values()].map((slices) => this.#row(slices, each));
    const { predicted } = this.state.hello;
    this.#latency = whole("latency of a request, ms", ms(predicted?.latency_ms));
    this.#rate = whole("requests/s (planned: at most)", rate(predicted?.requests_per_s));
    this.#body.replaceChildren(...[this.#latency, this.#rate, ...this.#rows].map(({ row }) => row));
  }

  #row(slices, each) {
    const [slice] = slices;
    const split = slice.split && slice.split !== "whole" ? `, ${slice.split}` : "";
    const name = `${each ? `${slice.pipeline}: ` : ""}${sliceName(slice)}${split}, ms a pass`;
    const chips = slices.length > 1 ? `${slices.length} × ${slice.chips.length}` : slice.chips.join(", ");
    const cells = Object.fromEntries(
      ["measured", "deviation", "batch", "passes", "restarts"].map((cell) => [cell, html("td", { class: "number" })]),
    );
    const head = html("th", { scope: "row" }, name);
    const row = html(
      "tr",
      {},
      head,
      html("td", {}, chips),
      html("td", { class: "number" }, ms(slice.predicted_ms)),
      ...Object.values(cells),
    );
    return { row, slices, cells };
  }

  /** Shows the last tick. */
  update() {
    for (const { row, slices, cells } of this.#rows) {
      const sum = { passes: 0, requests: 0, busy: 0, restarts: 0, seconds: 0 };
      for (const slice of slices) {
        const measured = this.state.measured(slice);
        for (const key of ["passes", "requests", "busy", "restarts"]) sum[key] += measured[key];
        sum.seconds = measured.seconds;
      }
      const mean = sum.passes ? sum.busy / sum.passes : NaN;
      const deviation = mean / slices[0].predicted_ms - 1;
      say(cells.measured, ms(mean));
      deviate(cells.deviation, deviation);
      say(cells.batch, sum.passes ? (sum.requests / sum.passes).toFixed(2) : "–");
      say(cells.passes, sum.seconds ? rate(sum.passes / sum.seconds) : "–");
      say(cells.restarts, String(sum.restarts));
      row.classList.toggle("idle", !sum.passes);
    }
    this.#totals();
  }

  #totals() {
    const { predicted } = this.state.hello;
    const { mean, rate: answered } = this.state.figures();
    say(this.#latency.measured, ms(mean));
    deviate(this.#latency.deviation, mean / predicted?.latency_ms - 1);
    say(this.#rate.measured, rate(answered));
    say(this.#rate.deviation, `${percent(answered / predicted?.requests_per_s)} of it`);
    const { pipelines } = this.state.last;
    const serving = pipelines.filter((pipeline) => pipeline.in_service).length;
    say(this.#rate.note, serving < pipelines.length ? `▲ ${serving} of ${pipelines.length} pipelines in service` : "");
  }
}

/** A row about whole requests. */
function whole(name, planned) {
  const [measured, deviation] = [html("td", { class: "number" }), html("td", { class: "number" })];
  const note = html("td", { colspan: "3", class: "note" });
  const row = html(
    "tr",
    {},
    html("th", { scope: "row", colspan: "2" }, name),
    html("td", { class: "number" }, planned),
    measured,
    deviation,
    note,
  );
  return { row, measured, deviation, note };
}

/** Writes a deviation, and points out a large one. */
function deviate(cell, share) {
  say(cell, signed(share));
  cell.className = `number ${share > FAR ? "over" : share < -FAR ? "under" : ""}`;
}

/** "+4.2%"; ▲ is slower than planned, for those who do not see the colour. */
function signed(share) {
  if (!Number.isFinite(share)) return "–";
  const text = `${share < 0 ? "−" : "+"}${Math.abs(share * 100).toFixed(1)}%`;
  return share > FAR ? `▲ ${text}` : share < -FAR ? `▼ ${text}` : text;
}
