// The board: chips in their places, how busy they are, and what they run.

import { byId, say, svg, tip } from "./page.js";
import { bytes, chipsName, letter, percent, sliceName } from "./words.js";

const CELL = { width: 68, least: 32, most: 60 };
const GAP = { x: 12, y: 9 };
const HEIGHT = 372; // that boards are drawn for
const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class Board {
  #root = byId("board");
  #details = byId("chip-details");
  #chips = new Map(); // id → its nodes
  #shown = null; // the chip whose details are shown
  #tipped = false; // whether they are in the tooltip as well

  /** `choose(chip)` is called with the chip that is clicked. */
  constructor(state, choose) {
    this.state = state;
    this.choose = choose;
    this.#root.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Draws another board. */
  draw() {
    const { board } = this.state.hello;
    const placed = places(board);
    const width = Math.max(...placed.map(({ x }) => x)) + CELL.width;
    const height = Math.max(...placed.map(({ y, height }) => y + height));
    // A small board is not blown up to the size of a large one.
    const box = Math.max(width + 6, 240);
    this.#root.setAttribute("viewBox", `${(width - box) / 2} -3 ${box} ${Math.max(height + 6, 150)}`);
    this.#chips.clear();
    const at = new Map(placed.map((chip) => [chip.id, chip]));
    const links = board.links.filter(([a, b]) => at.has(a) && at.has(b)).map(([a, b]) => link(at.get(a), at.get(b)));
    this.#root.replaceChildren(...links, ...placed.map((chip) => this.#chip(chip)));
    this.#chips.values().next().value?.group.setAttribute("tabindex", "0");
    this.#show(null);
    const size = board.rows && board.columns ? `${board.rows} × ${board.columns}` : `${placed.length} chips`;
    say(byId("board-name"), `${board.name}, ${size}`);
  }

  #chip(chip) {
    const { x, y, height } = chip;
    const on = this.state.slicesOn(chip.id);
    const stages = [...new Set(on.map(({ stage }) => stage))];
    const nodes = {
      load: svg("rect", { class: "load", x, y, width: 0, height, rx: 4 }),
      share: svg("text", { class: "share", x: x + CELL.width - 5, y: y + 14 }),
    };
    const short = stages.length === 1 ? stages[0] : stages.map(letter).join(" ");
    nodes.group = svg(
      "g",
      { class: "chip", role: "button", tabindex: "-1", "aria-pressed": "false", "data-chip": chip.id },
      svg("rect", { class: "case", x, y, width: CELL.width, height, rx: 4 }),
      nodes.load,
      svg("text", { class: "id", x: x + 5, y: y + 14 }, String(chip.id)),
      nodes.share,
      svg("text", { class: "stages", x: x + CELL.width / 2, y: y + Math.max(26, height - 9) }, short || "unused"),
    );
    Object.assign(nodes, { chip, on });
    nodes.group.addEventListener("click", () => this.choose(chip.id));
    nodes.group.addEventListener("focus", () => this.#show(nodes));
    nodes.group.addEventListener("blur", () => this.#show(null));
    nodes.group.addEventListener("pointermove", (event) => {
      this.#show(nodes);
      this.#tipped = true;
      tip(this.#words(nodes), event.clientX, event.clientY);
    });
    nodes.group.addEventListener("pointerleave", () => {
      this.#show(null);
      tip("");
    });
    this.#chips.set(chip.id, nodes);
    return nodes.group;
  }

  /** Arrow keys move between chips; the board is one stop of the tab key. */
  #key(event) {
    const from = this.#chips.get(Number(event.target.dataset?.chip))?.chip;
    if (!from) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.choose(from.id);
    }
    const [down, right] = KEYS[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    for (const { group, chip } of this.#chips.values()) {
      if (chip.row !== from.row + down || chip.column !== from.column + right) continue;
      event.target.setAttribute("tabindex", "-1");
      group.setAttribute("tabindex", "0");
      group.focus();
    }
  }

  /** Marks the chip that the timeline is filtered to. */
  mark(chosen) {
    for (const [id, { group }] of this.#chips) group.setAttribute("aria-pressed", String(id === chosen));
  }

  /** Shows the last tick. */
  update() {
    const { pipelines } = this.state.last;
    for (const [id, nodes] of this.#chips) {
      nodes.busy = this.state.load(id);
      nodes.out = nodes.on.length > 0 && nodes.on.every(({ pipeline }) => !pipelines[pipeline]?.in_service);
      nodes.load.setAttribute("width", ((nodes.busy || 0) * CELL.width).toFixed(1));
      say(nodes.share, nodes.out ? "out" : percent(nodes.busy));
      nodes.group.classList.toggle("out", nodes.out);
      nodes.group.setAttribute("aria-label", `Chip ${id}: load ${percent(nodes.busy)}, ${running(nodes)}`);
    }
    if (this.#shown) say(this.#details, this.#words(this.#shown));
  }

  #show(nodes) {
    if (this.#tipped && !nodes) this.#tipped = false;
    this.#shown = nodes;
    say(
      this.#details,
      nodes ? this.#words(nodes) : "The bar is a chip's load in the last two seconds.\nV vision · P prefix · E expert",
    );
  }

  #words(nodes) {
    const { chip, on, busy } = nodes;
    const pipelines = [...new Set(on.map(({ pipeline }) => pipeline))];
    const where = chip.placed ? `, row ${chip.row}, column ${chip.column}` : "";
    const of = pipelines.length ? `${pipelines.length > 1 ? "pipelines" : "pipeline"} ${pipelines.join(", ")}: ` : "";
    const shared = on
      .filter(({ chips }) => chips.length > 1)
      .map(({ stage, chips }) => `; ${stage} on ${chipsName(chips)}`);
    const memory = chip.memory_bytes
      ? ` · ${bytes(chip.set_aside_bytes)} of ${bytes(chip.memory_bytes)} set aside`
      : "";
    return `${chipsName([chip.id])}${where}\n${of}${running(nodes)}${shared.join("")}\nload ${percent(busy)}${memory}`;
  }
}

/** "vision 0-26, prefix 0-17". */
function running({ on, out }) {
  const slices = on.map(sliceName).join(", ") || "nothing runs here";
  return out ? `${slices} (out of service)` : slices;
}

/** Chips with their places on the page; those of a board that is no mesh stand in a square. */
function places({ chips }) {
  const columns = Math.ceil(Math.sqrt(chips.length));
  const all = chips.map((chip, index) => {
    const placed = Number.isInteger(chip.row) && Number.isInteger(chip.column);
    const row = placed ? chip.row : Math.floor(index / columns);
    const column = placed ? chip.column : index % columns;
    return { ...chip, placed, row, column };
  });
  const rows = 1 + Math.max(...all.map(({ row }) => row));
  const height = Math.min(CELL.most, Math.max(CELL.least, HEIGHT / rows - GAP.y));
  return all.map((chip) => ({
    ...chip,
    height,
    x: chip.column * (CELL.width + GAP.x),
    y: chip.row * (height + GAP.y),
  }));
}

/** A line between neighbours; a bow between chips that others lie between. */
function link(a, b) {
  const [x1, y1, x2, y2] = [a.x + CELL.width / 2, a.y + a.height / 2, b.x + CELL.width / 2, b.y + b.height / 2];
  if (Math.abs(a.row - b.row) + Math.abs(a.column - b.column) === 1)
    return svg("line", { class: "link", x1, y1, x2, y2 });
  const bow = (a.row === b.row ? a.height : CELL.width) / 2 + 5;
  const [x, y] = a.row === b.row ? [(x1 + x2) / 2, y1 + 2 * bow] : [x1 + 2 * bow, (y1 + y2) / 2];
  return svg("path", { class: "link", d: `M${x1} ${y1}Q${x} ${y} ${x2} ${y2}` });
}
