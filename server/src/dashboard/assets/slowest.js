// The slowest requests of the last minute, and the way to any other.

import { byId, html } from "./page.js";
import { clock, ms } from "./words.js";

export class Slowest {
  #body = byId("slow").tBodies[0];
  #shown = "";

  /** `open(id)` is called with a trace id, or what somebody wrote for one. */
  constructor(state, open) {
    this.state = state;
    this.open = open;
    byId("open").addEventListener("submit", (event) => {
      event.preventDefault();
      const id = byId("open-id").value.trim().toLowerCase();
      if (id) open(id);
    });
  }

  /** Shows the last tick, unless somebody is about to press one of the buttons. */
  update() {
    if (this.#body.matches(":hover") || this.#body.contains(document.activeElement)) return;
    const slowest = this.state.slowest();
    const shown = slowest.map(([id]) => id).join();
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#body.replaceChildren(...slowest.map((answer) => this.#row(answer)));
  }

  #row([id, robot, outcome, began, ended]) {
    const button = html("button", { type: "button", class: "id-button", title: id }, id.slice(-8));
    button.addEventListener("click", () => this.open(id));
    const over = this.state.hello.slo_ms && ended - began > this.state.hello.slo_ms;
    return html(
      "tr",
      {},
      html("td", {}, button),
      html("td", { class: `number ${over ? "over" : ""}` }, `${ms(ended - began)} ms${over ? " ▲" : ""}`),
      html("td", {}, outcome.replaceAll("_", " ")),
      html("td", { class: "robot", title: robot ?? "" }, robot ?? "–"),
      html("td", { class: "number" }, clock(ended, 1)),
    );
  }
}
