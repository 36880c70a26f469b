// Paints the timeline on its canvas.

import { canvasOf, colourOf, theme } from "./colours.js";
import { clock, letter } from "./words.js";

/** Where the names of rows end and time begins. */
export const LEFT = 62;
/** Where the axis ends and rows begin. */
export const TOP = 17;
const ROW_MAX = 46;
/** Stages are told apart by their height as well as by letters. */
const HEIGHTS = { vision: 0.5, prefix: 0.75, expert: 1 };
const BANDS = 4; // requests of a batch that are told apart by colour

/** Whether the activity in `place` of a chip is a send or a receive. */
export const isTransfer = (chip, place) => chip.kind[place] === 1 || chip.kind[place] === 2;

export class Painter {
  #hatched = { colour: "", pattern: null };

  constructor(state) {
    this.state = state;
  }

  /**
   * Paints `rows` of chips, `span` milliseconds up to the time `right`. Activities of the request `focus` stand out, and the one
   * at `cursor` has a frame. Gives the height of a row, how many blocks were painted, and where the frame is.
   */
  paint(canvas, { rows, right, span, focus, cursor }) {
    const { context, width, height } = canvasOf(canvas);
    const left = right - span;
    const x = (time) => LEFT + ((time - left) / span) * (width - LEFT);
    const row = Math.min(ROW_MAX, (height - TOP) / Math.max(1, rows.length));
    const view = { context, left, right, span, x, focus, row, width, bottom: TOP + rows.length * row };
    context.fillStyle = theme.panel;
    context.fillRect(0, 0, width, height);
    context.textBaseline = "middle";
    context.font = "10px system-ui, sans-serif";
    this.#gaps(view);
    axis(view);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, width - LEFT, height);
    context.clip();
    let blocks = 0;
    rows.forEach((one, index) => (blocks += this.#row(view, one, TOP + index * row)));
    context.restore();
    names(view, rows, cursor);
    return { row, blocks, cursor: frame(view, cursor) };
  }

  /** Hatches the times of which the server left activities out, so that they are not taken for idle. */
  #gaps({ context, left, right, x, bottom }) {
    for (const [from, to] of this.state.activities.gaps) {
      if (to < left || from > right) continue;
      const start = Math.max(LEFT, x(from));
      context.fillStyle = this.#hatch(context);
      context.fillRect(start, TOP, x(to) - start, bottom - TOP);
    }
  }

  #hatch(context) {
    const colour = theme.wait;
    if (this.#hatched.colour !== colour) this.#hatched = { colour, pattern: hatch(context, colour) };
    return this.#hatched.pattern;
  }

  /** Paints a row; gives how many blocks that took. Passes stand in it, transfers lie along its foot. */
  #row(view, { chip, slice }, top) {
    const { left, right, x } = view;
    const height = view.row - 1;
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
      const lane = isTransfer(chip, place) ? 1 : 0;
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
}

function axis({ context, left, right, span, x, width, bottom }) {
  const step =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000].find((one) => (one / span) * width > 75) ?? 20_000;
  const digits = step >= 1000 ? 0 : step >= 100 ? 1 : step >= 10 ? 2 : 3;
  context.textAlign = "center";
  for (let time = Math.ceil(left / step) * step; time <= right; time += step) {
    context.fillStyle = theme.grid;
    context.fillRect(Math.round(x(time)), TOP - 3, 1, bottom - TOP + 3);
    context.fillStyle = theme.quiet;
    if (time >= 0 && x(time) > LEFT + 20) context.fillText(clock(time, digits), Math.min(x(time), width - 24), 7);
  }
}

function names({ context, row, width }, rows, cursor) {
  context.textAlign = "right";
  const every = Math.ceil(9 / row);
  rows.forEach(({ name }, index) => {
    const y = TOP + index * row;
    context.fillStyle = theme.grid;
    context.fillRect(0, Math.round(y), width, 1);
    context.fillStyle = cursor?.row === index ? theme.accent : theme.quiet;
    if (index % every === 0) context.fillText(name, LEFT - 6, y + row / 2 + 0.5);
  });
}

/** A frame around the activity that the keys have chosen; gives a point in it. */
function frame({ context, x, row }, cursor) {
  if (!cursor || cursor.at < 0 || cursor.at < cursor.chip.first) return null;
  const place = cursor.at & cursor.chip.mask;
  const [from, to] = [x(cursor.chip.began[place]), x(cursor.chip.ended[place])];
  const top = TOP + cursor.row * row;
  context.strokeStyle = theme.text;
  context.lineWidth = 2;
  context.strokeRect(from - 1, top + 0.5, Math.max(3, to - from + 2), row - 1);
  const y = top + row * (isTransfer(cursor.chip, place) ? 0.93 : 0.7);
  return [(from + to) / 2, y];
}

/** The pattern of times of which not everything is known. */
function hatch(context, colour) {
  const tile = new OffscreenCanvas(8, 8);
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.globalAlpha = 0.4;
  for (const shift of [-8, 0, 8]) {
    pen.moveTo(shift, 8);
    pen.lineTo(shift + 8, 0);
  }
  pen.stroke();
  return context.createPattern(tile, "repeat");
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
