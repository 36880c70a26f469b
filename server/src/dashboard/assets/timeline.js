// The timeline: a row for each chip, a block for each activity; what is shown of it, and what is chosen in it.

import { labelText } from "./activities.js";
import { theme } from "./colours.js";
import { byId, say } from "./page.js";
import { LEFT, Painter, TOP, isTransfer } from "./painter.js";
import { clock, ms, sliceName } from "./words.js";

const SPAN = { min: 20, max: 60_000, start: 2000 }; // milliseconds shown

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
  #painter;

  constructor(state) {
    this.state = state;
    this.#painter = new Painter(state);
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
    const { span, cursor } = this;
    const focus = this.hovered || this.selected;
    const painted = this.#painter.paint(this.canvas, { rows: this.#rows, right, span, focus, cursor });
    this.view = { left: right - span, right, row: painted.row };
    this.blocks = painted.blocks;
    if (painted.cursor) this.canvas.dataset.cursor = painted.cursor.map((at) => at.toFixed(1)).join();
    else delete this.canvas.dataset.cursor;
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
      if (!found || isTransfer(chip, place) === low) found = { row: index, chip, at };
      if (isTransfer(chip, place) === low && chip.began[place] <= time && chip.ended[place] >= time) break;
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
