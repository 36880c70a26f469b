// Lines over the last minutes: latency, throughput, what was not answered, and what waits.

import { canvasOf, theme } from "./colours.js";
import { byId, tip } from "./page.js";
import { clock, ms, rate } from "./words.js";

const SHOWN_MS = 300_000;
const LEFT = 34;
const SAMPLE = 14; // of a line beside its name
const TOP = 6;
const BOTTOM = 15;
/** Lines are told apart by their dashes and their names as well. */
const DASHES = [[], [6, 3], [2, 2], [8, 2, 2, 2], [1, 3], [10, 4]];
/** Outcomes in the order of their looks. */
const REFUSALS = ["queue_full", "superseded", "expired", "deadline_impossible", "failed", "bad_request", "cancelled"];
const REFUSALS_SHOWN = 5;

export class Charts {
  constructor(state) {
    this.state = state;
    this.charts = [
      new Chart(byId("latency"), ms, "ms"),
      new Chart(byId("throughput"), rate, "/s"),
      new Chart(byId("refusals"), rate, "/s"),
      new Chart(byId("queue"), (value) => value.toFixed(0), ""),
    ];
    new ResizeObserver(() => this.update()).observe(byId("charts"));
  }

  /** Shows the points there are. */
  update() {
    const { hello, history, last } = this.state;
    if (!last) return;
    const first = history.length ? history[0].at : last.now;
    const to = history.at(-1)?.at ?? last.now;
    const range = { from: Math.max(first, to - SHOWN_MS), to };
    if (range.to - range.from < 20_000) range.from = range.to - 20_000;
    const line = (name, of, colour) => ({ name, colour, values: history.map(of) });
    const [latency, throughput, refusals, queue] = this.charts;
    const slo = hello.slo_ms ? { name: `SLO ${ms(hello.slo_ms)}`, value: hello.slo_ms } : null;
    latency.draw(
      history,
      range,
      [line("p50", (p) => p.p50, 0), line("p95", (p) => p.p95, 1), line("p99", (p) => p.p99, 5)],
      slo,
    );
    const planned = hello.predicted?.requests_per_s;
    const plan = planned ? { name: `plan ${rate(planned)}`, value: planned } : null;
    throughput.draw(history, range, [line("done", (p) => p.rates.done ?? 0, 2)], plan);
    refusals.draw(history, range, this.#refusals(line), null);
    const capacity = last.capacity ? { name: `full ${last.capacity}`, value: last.capacity } : null;
    queue.draw(history, range, [line("waiting", (p) => p.waiting, 0)], capacity);
  }

  /** Outcomes other than done that there are: the most frequent ones, each with a look of its own. */
  #refusals(line) {
    const { outcomes } = this.state.last;
    const names = Object.keys(outcomes).filter((name) => name !== "done" && outcomes[name] > 0);
    names.sort((a, b) => outcomes[b] - outcomes[a]);
    const looks = [...REFUSALS, ...names.filter((name) => !REFUSALS.includes(name)).sort()];
    const shown = names.slice(0, REFUSALS_SHOWN).map((name) => {
      const look = looks.indexOf(name);
      return {
        ...line(name.replaceAll("_", " "), (p) => p.rates[name] ?? 0, look % 7),
        dash: DASHES[look % DASHES.length],
      };
    });
    const rest = names.slice(REFUSALS_SHOWN);
    if (rest.length) shown.push(line("others", (p) => rest.reduce((sum, name) => sum + (p.rates[name] ?? 0), 0), 6));
    return shown;
  }
}

class Chart {
  #shown = null;

  constructor(canvas, write, unit) {
    Object.assign(this, { canvas, write, unit });
    canvas.addEventListener("pointermove", (event) => this.#hover(event));
    canvas.addEventListener("pointerleave", () => tip(""));
  }

  /** Draws lines over the points' times, and a `bound` that they should stay below, or reach. */
  draw(points, range, lines, bound) {
    const { context, width, height } = canvasOf(this.canvas);
    context.clearRect(0, 0, width, height);
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "middle";
    const area = { context, height, right: width - this.#room(context, lines, bound), bottom: height - BOTTOM };
    area.x = (time) => LEFT + ((time - range.from) / (range.to - range.from)) * (area.right - LEFT);
    const seen = lines.flatMap(({ values }) => values).filter(Number.isFinite);
    const ticks = steps(Math.max(0, ...seen, bound?.value ?? 0) || 1);
    area.y = (value) => area.bottom - (value / ticks.at(-1)) * (area.bottom - TOP);
    this.#shown = { points, x: area.x, lines };
    grid(area, ticks, range);
    const names = lines.map((line, index) =>
      this.#line(area, points, range, line, line.dash ?? DASHES[index % DASHES.length]),
    );
    if (bound) {
      const y = area.y(bound.value);
      stroke(context, theme.bad, [3, 3], 1, [
        [LEFT, y],
        [area.right, y],
      ]);
      names.push({ text: bound.name, colour: theme.bad, y });
    }
    this.#names(area, names);
    if (!lines.length) {
      context.fillStyle = theme.quiet;
      context.fillText("every request was answered", LEFT + 8, TOP + 10);
    }
    const summary = names.map(({ text }) => text).join(", ");
    this.canvas.setAttribute("aria-label", `${summary || "nothing yet"}${this.unit && ` in ${this.unit}`}`);
    this.canvas.dataset.points = points.length;
  }

  /** The width that names at the ends of lines take; it does not change with every value. */
  #room(context, lines, bound) {
    const texts = [...lines.map(({ name }) => `${name} 88.8`), bound?.name ?? ""];
    return SAMPLE + 12 + Math.max(...texts.map((text) => context.measureText(text).width));
  }

  /** Draws a line; gives its name with its last value. */
  #line({ context, x, y, bottom }, points, range, { name, values, colour }, dash) {
    const paint = theme.requests[colour];
    for (const piece of pieces(points, values, range.from)) {
      stroke(
        context,
        paint,
        dash,
        1.6,
        piece.map(([time, value]) => [x(time), y(value)]),
      );
    }
    const now = values.at(-1);
    if (!Number.isFinite(now)) return { text: name, colour: paint, dash, y: bottom };
    return { text: `${name} ${this.write(now)}`, colour: paint, dash, y: y(now) };
  }

  /** Writes names beside the ends of their lines, with a piece of the line. */
  #names({ context, right, bottom }, names) {
    spread(names, TOP, bottom);
    context.textAlign = "left";
    for (const { text, colour, dash, y } of names) {
      if (dash)
        stroke(context, colour, dash, 2, [
          [right + 4, y],
          [right + 4 + SAMPLE, y],
        ]);
      context.fillStyle = dash ? theme.text : colour;
      context.fillText(text, right + 8 + SAMPLE, y);
    }
  }

  /** The values at the point nearest to the pointer. */
  #hover(event) {
    if (!this.#shown?.points.length) return;
    const { points, x, lines } = this.#shown;
    let near = 0;
    points.forEach(({ at }, index) => {
      if (Math.abs(x(at) - event.offsetX) < Math.abs(x(points[near].at) - event.offsetX)) near = index;
    });
    const values = lines.map(
      ({ name, values }) =>
        `${name} ${Number.isFinite(values[near]) ? this.write(values[near]) : "–"}${this.unit && ` ${this.unit}`}`,
    );
    tip([`at ${clock(points[near].at)}`, ...values].join("\n"), event.clientX, event.clientY);
  }
}

function grid({ context, x, y, right, height }, ticks, range) {
  context.textAlign = "right";
  for (const tick of ticks) {
    context.fillStyle = theme.grid;
    context.fillRect(LEFT, Math.round(y(tick)), right - LEFT, 1);
    context.fillStyle = theme.quiet;
    context.fillText(tick >= 1000 ? `${tick / 1000}k` : String(tick), LEFT - 5, y(tick));
  }
  context.textAlign = "center";
  const seconds = (range.to - range.from) / 1000;
  const most = Math.max(1, (right - LEFT) / 48);
  const step = [5, 10, 15, 30, 60, 120].find((one) => seconds / one <= most) ?? 300;
  for (let ago = 0; ago <= seconds; ago += step) {
    const text = ago === 0 ? "now" : ago % 60 ? `−${ago} s` : `−${ago / 60} min`;
    context.fillText(text, x(range.to - ago * 1000), height - 6);
  }
}

function stroke(context, colour, dash, width, points) {
  context.strokeStyle = colour;
  context.setLineDash(dash);
  context.lineWidth = width;
  context.lineJoin = "round";
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  // One point alone is seen too.
  if (points.length === 1) context.lineTo(points[0][0] + 1, points[0][1]);
  context.stroke();
  context.setLineDash([]);
}

/** A line's times and values from a time on, in pieces that break where there is no value. */
function pieces(points, values, from) {
  const all = [[]];
  points.forEach(({ at }, index) => {
    if (at < from) return;
    if (Number.isFinite(values[index])) all.at(-1).push([at, values[index]]);
    else if (all.at(-1).length) all.push([]);
  });
  return all.filter((piece) => piece.length);
}

/** Three or four round numbers from 0 to at least `max`. */
function steps(max) {
  const rough = max / 3;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * size).find((one) => one >= rough - 1e-12);
  const count = Math.ceil(max / step - 1e-9);
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

/** Moves names apart that would lie on each other. */
function spread(names, top, bottom) {
  const line = Math.min(12, (bottom - top + 12) / Math.max(1, names.length));
  names.sort((a, b) => a.y - b.y);
  names.forEach((name, index) => (name.y = Math.max(name.y, index ? names[index - 1].y + line : top)));
  for (let index = names.length - 1, limit = bottom; index >= 0; index--, limit -= line)
    names[index].y = Math.min(names[index].y, limit);
}
