// The dashboard: connects the server's events with what shows them.

import { Board } from "./board.js";
import { Charts } from "./charts.js";
import { onThemeChange, readTheme, theme } from "./colours.js";
import { byId, html, say } from "./page.js";
import { Plan } from "./plan.js";
import { RequestPanel } from "./request.js";
import { Slowest } from "./slowest.js";
import { State } from "./state.js";
import { follow } from "./stream.js";
import { driveTimeline } from "./timeline-input.js";
import { Timeline } from "./timeline.js";
import { STAGES, letter, ms, rate } from "./words.js";

const THEME = "tensact.theme"; // in localStorage

const state = new State();
const timeline = new Timeline(state);
const panel = new RequestPanel(state, select);
const board = new Board(state, filter);
const charts = new Charts(state);
const plan = new Plan(state);
const slowest = new Slowest(state, (id) => panel.open(id));

const followPointer = driveTimeline(timeline, (labels) => panel.openBatch(labels));
chooseTheme();
byId("filter").addEventListener("click", () => filter(null));
follow({ hello, tick, state: connection, key: askKey });
requestAnimationFrame(frame);

function frame(now) {
  followPointer();
  timeline.frame(now);
  requestAnimationFrame(frame);
}

function hello(event) {
  const { version, variant, emulated, pipelines, board: hardware } = event;
  const other = state.greet(event);
  byId("emulated").hidden = !emulated;
  const many = pipelines.length === 1 ? "1 pipeline" : `${pipelines.length} pipelines`;
  byId("restarted").title = "The server was started anew; everything shown is of the new one";
  say(byId("what"), `${version} · ${variant} on ${hardware.name} · ${many}`);
  document.title = `${hardware.name} · Tensact`;
  document.body.dataset.run = event.run;
  if (!other) return;
  const { restartedAt } = state;
  byId("restarted").hidden = !restartedAt;
  if (restartedAt) say(byId("restarted"), `restarted ${restartedAt.toLocaleTimeString([], { hour12: false })}`);
  timeline.reset();
  filter(null);
  board.draw();
  plan.draw();
  openAddress();
}

/** Opens the request that the address names. */
function openAddress() {
  const wanted = /^#([0-9a-f]{8,32})$/.exec(location.hash);
  if (wanted && state.hello) panel.open(wanted[1]);
}
addEventListener("hashchange", openAddress);

function tick(event) {
  state.take(event, performance.now());
  // What nobody sees is kept up to date, but not drawn.
  if (document.hidden) return;
  board.update();
  charts.update();
  plan.update();
  slowest.update();
  panel.update();
  figures();
  Object.assign(document.body.dataset, {
    ticks: state.ticks,
    answered: state.last.outcomes.done ?? 0,
    blocks: timeline.blocks ?? 0,
  });
}

function figures() {
  const { p50, p95, p99, rate: answered, seen, unseen } = state.figures();
  const slo = state.hello.slo_ms;
  say(byId("figure-rate"), `${rate(answered)}/s`);
  for (const [name, value] of Object.entries({ p50, p95, p99 })) {
    const over = slo && value > slo;
    say(byId(`figure-${name}`), `${ms(value)} ms${over ? " ▲" : ""}`);
    byId(`figure-${name}`).classList.toggle("over", Boolean(over));
  }
  const { waiting, capacity } = state.last;
  say(byId("figure-waiting"), `${waiting} of ${capacity}`);
  say(byId("latency-note"), unseen ? `of ${Math.round((100 * seen) / (seen + unseen))}% of the answers` : "");
  const { leftOut } = state.last;
  say(byId("timeline-note"), leftOut ? `${leftOut} activities of the last half second are not shown` : "");
}

/** Shows how the server is reached: connecting, live, reconnecting or refused. */
function connection(name, why) {
  document.body.dataset.connection = name;
  byId("connection").title = why;
  if (!state.hello) say(byId("what"), why);
  sayConnection();
}

function sayConnection() {
  const { connection: name, paused } = document.body.dataset;
  say(byId("connection-text"), name === "live" && paused === "true" ? "paused" : name === "refused" ? "no key" : name);
}
new MutationObserver(sayConnection).observe(document.body, { attributeFilter: ["data-paused"] });

/** Shows one chip in the timeline, or all; the same chip again shows all. */
function filter(chip) {
  if (chip !== null && chip === timeline.chip) chip = null;
  timeline.filter(chip);
  board.mark(chip);
  byId("filter").hidden = chip === null;
  say(byId("filter"), `chip ${chip} only ✕`);
}

/** Lets a request stand out, and the address lead to it. */
function select(id) {
  timeline.selected = id ? parseInt(id.slice(-8), 16) || 0 : 0;
  history.replaceState(null, "", id ? `#${id}` : location.pathname + location.search);
}

/** Asks for an API key; the promise is kept when there is one. */
function askKey(why) {
  const dialog = byId("key-dialog");
  say(byId("key-why"), why);
  byId("key").value = "";
  return new Promise((resolve) => {
    // A header holds no other characters, and a key that cannot be sent is a wrong one.
    const answer = () =>
      /^[\x21-\x7e]+$/.test(byId("key").value.trim()) ? resolve(byId("key").value.trim()) : ask("That is no API key.");
    const ask = (reason) => {
      say(byId("key-why"), reason);
      dialog.addEventListener("close", answer, { once: true });
      dialog.showModal();
    };
    ask(why);
  });
}

/** Light, dark, or as the system has it. */
function chooseTheme() {
  const order = ["", "light", "dark"];
  const show = () => {
    readTheme();
    const chosen = document.documentElement.dataset.theme ?? "";
    say(byId("theme"), { "": "◐ auto", light: "☀ light", dark: "☾ dark" }[chosen]);
    byId("theme").setAttribute("aria-label", `Theme: ${chosen || "as the system"}`);
    legend();
    charts.update();
    panel.redraw();
  };
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    show();
  };
  byId("theme").addEventListener("click", () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % order.length];
    localStorage.setItem(THEME, next);
    set(next);
  });
  onThemeChange(show);
  const kept = localStorage.getItem(THEME);
  set(order.includes(kept) ? kept : "");
}

/** How blocks are read. */
function legend() {
  const block = (name, height) => {
    const canvas = html("canvas", { width: 36, height: 24, "aria-hidden": "true" });
    const context = canvas.getContext("2d");
    context.fillStyle = theme.requests[0];
    if (name === "held up") {
      context.strokeStyle = theme.wait;
      context.lineWidth = 2;
      context.strokeRect(1, 8, 34, 12);
    } else context.fillRect(0, 24 * (1 - height), 36, 24 * height);
    return html("span", {}, canvas, name);
  };
  const stages = STAGES.map((stage, index) => block(`${letter(stage)} ${stage}`, [0.5, 0.75, 1][index]));
  byId("legend").replaceChildren(...stages, block("transfer", 0.2), block("held up", 1), "colour: request");
}
