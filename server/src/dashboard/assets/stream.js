// The server's events and requests. Events are read with fetch(), because an EventSource cannot send an API key.

const KEY = "tensact.api-key"; // in sessionStorage: gone with the tab
const SILENCE_MS = 10_000; // ticks come twice a second
const BACKOFF_MS = [250, 500, 1000, 2000, 4000];
const EVENT_MAX = 16 << 20; // characters; a tick is at most a few hundred thousand

const here = (path) => new URL(path, import.meta.url);

/** What `fetch` takes to be let in. */
function access() {
  const key = sessionStorage.getItem(KEY);
  return { headers: key ? { Authorization: `Api-Key ${key}` } : {}, cache: "no-store" };
}

/**
 * Reads events until the page is gone.
 * `on.hello(hello)` and `on.tick(tick)` get the parsed events, `on.state(name, why)` hears of the connection:
 * connecting, live, reconnecting or refused. `on.key(why)` gives a promise of an API key.
 */
export async function follow(on) {
  let failures = 0;
  on.state("connecting", "");
  for (;;) {
    let why;
    try {
      why = await connection(on, () => (failures = 0));
      if (why === "key") {
        const refused = sessionStorage.getItem(KEY) !== null;
        on.state("refused", "The server asks for an API key.");
        const key = await on.key(refused ? "The server does not know this key." : "This server has API keys.");
        sessionStorage.setItem(KEY, key);
        continue;
      }
    } catch (error) {
      why = error.name === "AbortError" ? "The server fell silent." : String(error.message ?? error);
    }
    on.state("reconnecting", why);
    const pause = BACKOFF_MS[Math.min(failures++, BACKOFF_MS.length - 1)];
    await elapsed(pause * (0.8 + 0.4 * Math.random()));
  }
}

/** One connection, from its first byte to its last; gives why it ended. */
async function connection(on, opened) {
  const abort = new AbortController();
  let watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
  try {
    const answer = await fetch(here("events"), { ...access(), signal: abort.signal });
    if (answer.status === 401) return "key";
    if (!answer.ok) return `The server answers ${answer.status}.`;
    const reader = answer.body.getReader();
    const parser = new EventParser((name, data) => {
      if (name === "hello") {
        on.hello(JSON.parse(data));
        opened();
        on.state("live", "");
      } else if (name === "tick") on.tick(JSON.parse(data));
    });
    const text = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return "The server closed the connection.";
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
      parser.feed(text.decode(value, { stream: true }));
    }
  } finally {
    clearTimeout(watchdog);
    abort.abort();
  }
}

/** The text of server-sent events, whose pieces may end anywhere. */
export class EventParser {
  #emit;
  #pieces = [];
  #length = 0;
  #name = "message";
  #data = [];

  constructor(emit) {
    this.#emit = emit;
  }

  feed(text) {
    let from = 0;
    for (let end; (end = text.indexOf("\n", from)) >= 0; from = end + 1) {
      this.#pieces.push(text.slice(from, end));
      const line = this.#pieces.join("");
      this.#pieces = [];
      this.#length = 0;
      this.#line(line.endsWith("\r") ? line.slice(0, -1) : line);
    }
    if (from < text.length) this.#pieces.push(text.slice(from));
    this.#length += text.length - from;
    if (this.#length > EVENT_MAX) throw new Error("The server sent an event without end.");
  }

  #line(line) {
    if (line === "") {
      if (this.#data.length) this.#emit(this.#name, this.#data.join("\n"));
      this.#name = "message";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    else if (field === "data") this.#data.push(value);
  }
}

/** The request of a trace id, or of its first digits. Throws an error with `status` and the server's words. */
export async function request(id) {
  const answer = await fetch(here(`requests/${encodeURIComponent(id)}`), access());
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const error = new Error(body.error?.message ?? `The server answers ${answer.status}.`);
  error.status = answer.status;
  throw error;
}

/** Waits, but not while the page comes back to sight or the network returns. */
function elapsed(ms) {
  return new Promise((resolve) => {
    const abort = new AbortController();
    const go = () => {
      abort.abort();
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(go, ms);
    addEventListener("online", go, { signal: abort.signal });
    document.addEventListener("visibilitychange", () => document.hidden || go(), { signal: abort.signal });
  });
}
