// The timeline: a row for each chip, a block for each activity, painted on a canvas.

import { labelText } from "./activities.js";
import { canvasOf, colourOf, theme } from "./colours.js";
import { byId, say } from "./page.js";
import { clock, letter, ms, sliceName } from "./words.js";

const LEFT = 62; // names of rows
const TOP = 17; // the axis
const ROW_MAX = 46;
const SPAN = { min: 20, max: 60_000, start: 2000 }; // milliseconds shown
/** Stages are told apart by their height as well as by letters. */
const HEIGHTS = { vision: 0.5, prefix: 0.75, expert: 1 };
const BANDS = 4; // requests of a batch that are told apart by colour

export class Timeline {
  canvas = byId("timeline");
  span = SPAN.start;
  /** The server's time at the right end; null follows the server. */
  right = null;
  chip = null; // the chip it is filtered to
  selected = 0; // label of the request that stands out
  hovered = 0;
  cursor = null; // { row, chip, at }: an activity chosen with keys
  #drawn = "";
  #rows = [];

  constructor(state) {
    this.state = state;
    new ResizeObserver(() => this.#dirty()).observe(this.canvas);
    this.#say();
  }

  #dirty() {
    this.#drawn = "";
  }

  /** Starts over, with another board. */
  reset() {
    this.resume();
    this.selected = this.hovered = 0;
    this.filter(null);
  }

  get paused() {
    return this.right !== null;
  }

  /** Rows of one chip, slice by slice, or of all chips. */
  filter(chip) {
    this.chip = chip;
    this.cursor = null;
    const chips = this.state.activities.chips;
    const all = (id) => ({ id, name: `chip ${id}`, chip: chips.get(id), slice: null });
    this.#rows = (chip === null ? [...chips.keys()] : [chip]).map(all);
    if (chip !== null) {
      this.state.slices.forEach((slice, number) => {
        if (slice.chips.includes(chip)) this.#rows.push({ ...all(chip), name: slice.stage, slice: number });
      });
    }
    this.#dirty();
  }

  pause(when) {
    this.right ??= this.state.head(when);
    this.#say();
  }

  resume() {
    this.right = null;
    this.cursor = null;
    this.#say();
  }

  /** Moves by a share of what is shown; stops the timeline, or lets it go on when it reaches the present. */
  pan(share, when) {
    const head = this.state.head(when);
    this.right = (this.right ?? head) + share * this.span;
    if (this.right >= head) this.resume();
    this.right = this.right && Math.max(this.right, this.span * 0.1);
    this.#say();
  }

  /** Zooms around the time at `x`; a live timeline keeps its right end. */
  zoom(factor, x = null) {
    const before = this.span;
    this.span = Math.min(SPAN.max, Math.max(SPAN.min, before * factor));
    if (this.right !== null) {
      const share = x === null ? 0.5 : 1 - (x - LEFT) / this.#width();
      this.right -= share * (before - this.span);
    }
    this.#dirty();
    this.#say();
  }

  #width() {
    return Math.max(1, this.canvas.clientWidth - LEFT);
  }

  #say() {
    document.body.dataset.paused = String(this.paused);
    this.canvas.dataset.span = this.span.toFixed(1);
    this.canvas.dataset.right = this.right === null ? "live" : this.right.toFixed(1);
    say(byId("span"), this.span >= 1000 ? `${(this.span / 1000).toFixed(1)} s` : `${this.span.toFixed(0)} ms`);
    const pause = byId("pause");
    say(pause, this.paused ? "Resume" : "Pause");
    pause.setAttribute("aria-pressed", String(this.paused));
  }

  /** Paints, if anything that is seen has changed since the last time. */
  frame(when) {
    if (!this.state.last) return;
    const pixel = this.span / this.#width() / (devicePixelRatio || 1);
    const right = this.right ?? Math.round(this.state.head(when) / pixel) * pixel;
    const { activities } = this.state;
    const cursor = this.cursor && `${this.cursor.row} ${this.cursor.at}`;
    const drawn = [
      right,
      this.span,
      activities.total,
      this.selected,
      this.hovered,
      cursor,
      this.chip,
      theme.dark,
    ].join();
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.#paint(right);
  }

  #paint(right) {
    const { context, width, height } = canvasOf(this.canvas);
    const scale = (width - LEFT) / this.span;
    const left = right - this.span;
    const view = {
      context,
      left,
      right,
      scale,
      x: (time) => LEFT + (time - left) * scale,
      focus: this.hovered || this.selected,
    };
    this.view = { left, right, row: this.#rowHeight(height) };
    context.fillStyle = theme.panel;
    context.fillRect(0, 0, width, height);
    context.textBaseline = "middle";
    context.font = "10px system-ui, sans-serif";
    this.#axis(view, width);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, height);
    context.clip();
    let blocks = 0;
    this.#rows.forEach((row, index) => (blocks += this.#row(view, row, TOP + index * this.view.row)));
    context.restore();
    this.#names(context, width);
    this.#cursorBox(view);
    this.blocks = blocks;
  }

  #rowHeight(height) {
    return Math.min(ROW_MAX, (height - TOP) / Math.max(1, this.#rows.length));
  }

  #axis({ context, left, right, x }, width) {
    const step =
      [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000].find((one) => (one / this.span) * width > 75) ??
      20_000;
    const digits = step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3;
    const bottom = TOP + this.#rows.length * this.view.row;
    context.textAlign = "center";
    for (let time = Math.ceil(left / step) * step; time <= right; time += step) {
      context.fillStyle = theme.grid;
      context.fillRect(Math.round(x(time)), TOP - 3, 1, bottom - TOP + 3);
      context.fillStyle = theme.quiet;
      if (time >= 0 && x(time) > LEFT + 20) context.fillText(clock(time, digits), Math.min(x(time), width - 24), 7);
    }
  }

  #names(context, width) {
    context.textAlign = "right";
    const { row } = this.view;
    const every = Math.ceil(9 / row);
    this.#rows.forEach(({ name }, index) => {
      const y = TOP + index * row;
      context.fillStyle = theme.grid;
      context.fillRect(0, Math.round(y), width, 1);
      context.fillStyle = this.cursor?.row === index ? theme.accent : theme.quiet;
      if (index % every === 0) context.fillText(name, LEFT - 6, y + row / 2 + 0.5);
    });
  }

  /** Paints a row; gives how many blocks that took. Passes stand in it, transfers lie along its foot. */
  #row(view, { chip, slice }, top) {
    const { left, right, x } = view;
    const height = this.view.row - 1;
    const foot = height > 8 ? Math.max(2, height * 0.18) : 1.5;
    const lanes = [new Run(chip), new Run(chip)];
    let blocks = 0;
    const paint = (run, lane) => {
      if (run.place < 0) return;
      blocks += 1;
      if (lane) this.#block(view, run, top + 1 + height - foot, foot - 0.5, false);
      else if (chip.kind[run.place] === 3)
        this.#stall(view, run, top + 1 + (height - foot) * 0.35, (height - foot) * 0.5);
      else this.#pass(view, run, top + 1, height - foot);
    };
    for (let at = chip.from(left - 1000); at < chip.end; at++) {
      const place = at & chip.mask;
      if (chip.ended[place] < left || (slice !== null && chip.slice[place] !== slice)) continue;
      if (chip.began[place] > right) {
        if (chip.ended[place] > right + 2000) break;
        continue;
      }
      const lane = chip.kind[place] === 1 || chip.kind[place] === 2 ? 1 : 0;
      const [from, to] = [x(chip.began[place]), x(chip.ended[place])];
      const run = lanes[lane];
      if (run.takes(place, from, to)) continue;
      paint(run, lane);
      run.begin(place, from, to);
    }
    lanes.forEach(paint);
    return blocks;
  }

  #pass(view, run, top, full) {
    const stage = this.state.slices[run.chip.slice[run.place]].stage;
    const height = full * (HEIGHTS[stage] ?? 1);
    const wide = this.#block(view, run, top + full - height, height, run.to - run.from > 3);
    const { context, focus } = view;
    if (wide < 12 || height < 7 || (focus && !this.state.activities.isOf(run.chip, run.place, focus))) return;
    const step = run.chip.step[run.place];
    context.fillStyle = theme.ink[colourOf(this.state.activities.label(run.chip, run.place, 0))];
    context.textAlign = "center";
    const single = run.last === run.place && step >= 0 && wide > 26;
    context.fillText(
      single ? `${letter(stage)}${step}` : letter(stage),
      (run.from + run.to) / 2,
      top + full - height / 2 + 0.5,
    );
  }

  /** Fills a block with the colours of its requests; gives its width. */
  #block({ context, focus }, run, top, height, gap) {
    const { activities } = this.state;
    const width = Math.max(0.7, run.to - run.from - (gap ? 0.8 : 0));
    const bands = Math.min(BANDS, run.chip.count[run.place], Math.max(1, Math.floor(height / 2)));
    if (focus && !activities.isOf(run.chip, run.place, focus)) context.globalAlpha = 0.22;
    for (let band = 0; band < bands; band++) {
      context.fillStyle = theme.requests[colourOf(activities.label(run.chip, run.place, band))];
      context.fillRect(run.from, top + (height * band) / bands, width, height / bands);
    }
    context.globalAlpha = 1;
    return width;
  }

  #stall({ context }, run, top, height) {
    context.strokeStyle = theme.wait;
    context.lineWidth = 1;
    context.strokeRect(run.from + 0.5, top, Math.max(0.5, run.to - run.from - 1), height);
  }

  /** A frame around the activity that the keys have chosen. */
  #cursorBox({ context, x }) {
    const { cursor } = this;
    delete this.canvas.dataset.cursor;
    if (!cursor || cursor.at < 0 || cursor.at < cursor.chip.first) return;
    const place = cursor.at & cursor.chip.mask;
    const [from, to] = [x(cursor.chip.began[place]), x(cursor.chip.ended[place])];
    const top = TOP + cursor.row * this.view.row;
    context.strokeStyle = theme.text;
    context.lineWidth = 2;
    context.strokeRect(from - 1, top + 0.5, Math.max(3, to - from + 2), this.view.row - 1);
    const y = top + this.view.row * (this.#isTransfer(cursor.chip, place) ? 0.93 : 0.7);
    this.canvas.dataset.cursor = `${((from + to) / 2).toFixed(1)},${y.toFixed(1)}`;
  }

  #isTransfer(chip, place) {
    return chip.kind[place] === 1 || chip.kind[place] === 2;
  }

  /** The activity at a point of the canvas, as { row, chip, at }. */
  hit(px, py) {
    if (!this.view || px < LEFT) return null;
    const index = Math.floor((py - TOP) / this.view.row);
    const row = this.#rows[index];
    if (!row) return null;
    const tolerance = (1.5 * this.span) / this.#width();
    const time = this.view.left + ((px - LEFT) / this.#width()) * this.span;
    const { chip, slice } = row;
    const low = (py - TOP) / this.view.row - index > 0.82;
    let found = null;
    for (let at = chip.from(time - tolerance); at < chip.end; at++) {
      const place = at & chip.mask;
      if (chip.ended[place] > time + 10_000) break;
      if (chip.began[place] > time + tolerance || (slice !== null && chip.slice[place] !== slice)) continue;
      if (!found || this.#isTransfer(chip, place) === low) found = { row: index, chip, at };
      if (this.#isTransfer(chip, place) === low && chip.began[place] <= time && chip.ended[place] >= time) break;
    }
    return found;
  }

  /** Chooses the next row down or up, and the activity in it that the last one stood next to. */
  moveRow(by) {
    if (!this.view || !this.#rows.length) return;
    const row = Math.min(
      this.#rows.length - 1,
      Math.max(0, (this.cursor?.row ?? (by > 0 ? -1 : this.#rows.length)) + by),
    );
    const { chip } = this.#rows[row];
    const old = this.cursor;
    const time = old && old.at >= 0 ? old.chip.began[old.at & old.chip.mask] : this.view.right;
    this.cursor = { row, chip, at: Math.min(chip.from(time), chip.end - 1) };
  }

  /** Chooses the activity before or after the chosen one, and shows it. */
  moveActivity(by, when) {
    if (!this.cursor) this.moveRow(1);
    if (!this.cursor) return;
    this.pause(when);
    const { chip, row, at } = this.cursor;
    const { slice } = this.#rows[row];
    let next = at + by;
    while (slice !== null && next >= chip.first && next < chip.end && chip.slice[next & chip.mask] !== slice)
      next += by;
    if (next < chip.first || next >= chip.end) return;
    this.cursor = { row, chip, at: next };
    const place = next & chip.mask;
    if (chip.began[place] < this.right - this.span) this.right = chip.began[place] + this.span * 0.9;
    if (chip.ended[place] > this.right) this.right = chip.ended[place] + this.span * 0.1;
    this.#say();
  }

  /** Trace labels of the requests that an activity was for. */
  labels({ chip, at }) {
    const place = at & chip.mask;
    const labels = Array.from({ length: chip.count[place] }, (_, index) =>
      this.state.activities.label(chip, place, index),
    );
    return labels.filter((label) => label !== 0).map(labelText);
  }

  /** What an activity was, in words. */
  words({ chip, at }) {
    const place = at & chip.mask;
    const slice = this.state.slices[chip.slice[place]];
    const step = chip.step[place];
    const what = ["", " sends", " receives", " is held up by a full edge"][chip.kind[place]];
    const labels = this.labels({ chip, at });
    const robots = labels.slice(0, 4).map((label) => {
      const robot = this.state.answered.get(label)?.[1];
      return robot ? `${label} of ${robot}` : label;
    });
    const more = labels.length > 4 ? ` and ${labels.length - 4} more` : "";
    const many = labels.length > 1 ? `batch of ${labels.length}: ` : "request ";
    return [
      `${sliceName(slice)}${step >= 0 ? `, step ${step}` : ""}${what}`,
      `${ms(chip.ended[place] - chip.began[place])} ms from ${clock(chip.began[place], 3)}, pipeline ${slice.pipeline}`,
      labels.length ? `${many}${robots.join(", ")}${more}` : "",
    ].join("\n");
  }
}

/** Activities of the same requests and slice that stand so close that they are painted as one. */
class Run {
  place = -1;
  last = -1;
  from = 0;
  to = -Infinity;

  constructor(chip) {
    this.chip = chip;
  }

  begin(place, from, to) {
    this.place = this.last = place;
    this.from = from;
    this.to = to;
  }

  /** Whether an activity needs no block of its own. */
  takes(place, from, to) {
    if (this.place < 0) return false;
    const { chip } = this;
    const same =
      chip.key[place] === chip.key[this.place] &&
      chip.slice[place] === chip.slice[this.place] &&
      chip.kind[place] === chip.kind[this.place];
    if (same && to - from < 5 && from - this.to < 0.75) {
      this.last = place;
      this.to = Math.max(this.to, to);
      return true;
    }
    // Less than half a pixel beside what stands there cannot be seen.
    return to - this.to < 0.5 && from >= this.from - 0.5;
  }
}
