// The panel of one request: its parts, its activities and its critical path.

import { drawGantt } from "./gantt.js";
import { byId, html, say } from "./page.js";
import { request as fetchRequest } from "./stream.js";
import { clock, ms, percent } from "./words.js";

const PARTS = ["read", "preprocess", "queue", "vision", "prefix", "denoise", "postprocess"];

export class RequestPanel {
  #panel = byId("request-panel");
  #asked = 0; // counts what was opened, so that late answers are dropped
  #awaited = null; // a request that is not answered yet
  #shown = null;
  #back = null; // what had the focus before

  /** `select(id)` is called with the request that is shown, or null. */
  constructor(state, select) {
    this.state = state;
    this.select = select;
    byId("request-close").addEventListener("click", () => this.close());
    this.#panel.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    new ResizeObserver(() => this.redraw()).observe(byId("request-gantt-box"));
  }

  /** Opens one of the requests of an activity, and offers the others. */
  openBatch(labels) {
    if (!labels.length) return;
    const choices = labels.map((label) => {
      const button = html("button", { type: "button", class: "id-button", "aria-pressed": "false" }, label);
      button.addEventListener("click", () => this.#load(label));
      return button;
    });
    byId("request-batch").replaceChildren(...(labels.length > 1 ? ["batch:", ...choices] : []));
    this.#open(labels[0]);
  }

  /** Opens the request of a trace id, or of its first eight digits or more. */
  open(id) {
    byId("request-batch").replaceChildren();
    this.#open(id);
  }

  #open(id) {
    this.#back ??= document.activeElement;
    this.#panel.hidden = false;
    this.#load(id);
    this.#panel.focus({ preventScroll: true });
  }

  async #load(id) {
    const asked = ++this.#asked;
    this.#awaited = null;
    const known = this.state.answered.get(id.slice(-8))?.[0];
    const full = known?.startsWith(id) ? known : id;
    this.#head(full);
    this.select(full);
    this.#say("Asking the server …");
    try {
      const request = await fetchRequest(full);
      if (asked !== this.#asked) return;
      this.#say("");
      this.#show(request);
    } catch (error) {
      if (asked !== this.#asked) return;
      // What is still on its way cannot be told yet; it is when its answer is seen.
      if (error.status === 404 && !known) this.#awaited = id.slice(-8);
      this.#say(error.message);
    }
  }

  #head(id) {
    this.#shown = null;
    delete this.#panel.dataset.latency;
    delete this.#panel.dataset.path;
    this.#panel.dataset.trace = id;
    say(byId("request-title"), `Request ${id}`);
    say(byId("request-facts"), "");
    byId("request-body").hidden = true;
    for (const choice of byId("request-batch").querySelectorAll("button")) {
      choice.setAttribute("aria-pressed", String(id.startsWith(choice.textContent)));
    }
  }

  #say(text) {
    say(byId("request-state"), text);
  }

  /** Looks whether the request that is waited for was answered. */
  update() {
    if (this.#awaited && this.state.answered.has(this.#awaited)) this.#load(this.#awaited);
  }

  /** Closes the panel; the focus goes back to where it came from. */
  close() {
    this.#asked += 1;
    this.#awaited = this.#shown = null;
    this.#panel.hidden = true;
    this.select(null);
    this.#back?.focus?.({ preventScroll: true });
    this.#back = null;
  }

  redraw() {
    if (this.#shown && !this.#panel.hidden) drawGantt(byId("request-gantt"), this.#shown);
  }

  #show(request) {
    const { trace_id: id, robot, outcome, pipeline, began, ended, parts, path } = request;
    this.#panel.dataset.trace = id;
    this.select(id);
    say(byId("request-title"), `Request ${id}`);
    const where = Number.isInteger(pipeline) ? `pipeline ${pipeline}` : "no pipeline";
    const facts = [
      outcome.replaceAll("_", " "),
      `${ms(ended - began)} ms`,
      `robot ${robot ?? "without a name"}`,
      where,
      `arrived at ${clock(began, 3)}`,
    ];
    say(byId("request-facts"), facts.join(" · "));
    byId("request-body").hidden = false;
    this.#parts(parts, ended - began);
    this.#path(path, ended - began);
    this.#shown = request;
    this.redraw();
    this.#panel.scrollIntoView({ block: "nearest" });
  }

  #parts(parts, latency) {
    const named = Object.entries(parts).map(([name, value]) => [name.replace(/_ms$/, ""), value]);
    const rank = ([name]) => PARTS.indexOf(name) + 1 || PARTS.length + 1;
    named.sort((a, b) => rank(a) - rank(b));
    const rows = named.map(([name, value]) =>
      html(
        "tr",
        {},
        html("th", { scope: "row" }, name),
        html("td", { class: "number" }, `${ms(value)} ms`),
        html("td", { class: "number" }, percent(value / latency)),
      ),
    );
    byId("request-parts").replaceChildren(...rows);
  }

  #path(path, latency) {
    const length = ({ began, ended }) => ended - began;
    const sum = (segments) => segments.reduce((total, one) => total + length(one), 0);
    const total = sum(path);
    const waiting = sum(path.filter(({ kind }) => kind === "wait"));
    this.#panel.dataset.path = total.toFixed(3);
    this.#panel.dataset.latency = latency.toFixed(3);
    say(byId("path-sum"), `${ms(total)} of ${ms(latency)} ms: ${ms(total - waiting)} at work, ${ms(waiting)} waiting`);
    const rows = path.map((one) => {
      const wait = one.kind === "wait";
      return html(
        "li",
        { class: wait ? "wait" : "", title: `${percent(length(one) / latency)} of the latency` },
        html("span", { class: "time" }, `${ms(length(one))} ms`),
        html("span", { "aria-hidden": "true" }, wait ? "◇" : "■"),
        html("span", {}, wait ? `waits for ${one.what}` : one.what),
      );
    });
    byId("request-path").replaceChildren(...rows);
  }
}
