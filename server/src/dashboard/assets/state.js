// What the page knows of the server. Everything here is bounded: the page may stay open for weeks.

import { Activities } from "./activities.js";

const BUCKET_MS = 2000; // one point of the charts
const POINTS = 150;
const MEASURED_MS = 10_000; // what "now" means for means and percentiles
const LOAD_MS = 2000; // and for the load of a chip
const ANSWERED = 8192; // requests whose trace ids are known
const SLOWEST = 12;
const SLOW_BUCKET_MS = 5000;
const SLOW_BUCKETS = 12;
/** Time that the timeline is behind, so that a tick arrives before it is shown. */
const BEHIND_MS = 700;

/** The value below which the share `q` of the sorted numbers lies. */
export function percentile(sorted, q) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] : NaN;
}

export class State {
  hello = null;
  restartedAt = null;

  /** Takes a hello; gives whether this is another server, or another run of it, than before. */
  greet(hello) {
    const other = this.hello?.run !== hello.run;
    if (other && this.hello) this.restartedAt = new Date();
    if (other) this.#begin(hello);
    this.hello = hello;
    this.interrupted = !other; // nothing was heard since the last tick
    this.offsets = [];
    return other;
  }

  #begin(hello) {
    this.slices = [];
    this.sliceNumbers = hello.pipelines.map(({ slices }, pipeline) =>
      slices.map((slice, index) => this.slices.push({ ...slice, pipeline, index }) - 1),
    );
    this.activities = new Activities(hello.board.chips.map((chip) => chip.id));
    this.last = null;
    this.snapshots = []; // ticks of the last MEASURED_MS, without what they list
    this.history = []; // closed buckets
    this.bucket = null;
    this.answered = new Map(); // label → [trace id, robot, outcome, began, ended]
    this.slow = []; // { from, requests } of SLOW_BUCKET_MS each
    this.ticks = 0;
  }

  /** Takes a tick that arrived at `arrived` (performance.now()). */
  take(tick, arrived) {
    const before = this.last;
    this.offsets.push(arrived - tick.now);
    if (this.offsets.length > 40) this.offsets.shift();
    this.offset = Math.min(...this.offsets);
    this.activities.take(tick.activities, (pipeline, slice) => this.sliceNumbers[pipeline]?.[slice]);
    const leftOut = tick.activities_left_out ?? 0;
    if (leftOut || this.interrupted) this.activities.miss(before?.now ?? tick.now - 500, tick.now);
    const latencies = [];
    for (const answer of tick.answered) {
      const [id, , outcome, began, ended] = answer;
      if (outcome === "done") latencies.push(ended - began);
      this.answered.set(id.slice(-8), answer);
      this.#rank(answer);
    }
    for (const label of this.answered.keys()) {
      if (this.answered.size <= ANSWERED) break;
      this.answered.delete(label);
    }
    const { now, outcomes, slices, chips, waiting, queue_capacity: capacity, pipelines } = tick;
    this.last = {
      now,
      outcomes,
      slices,
      chips,
      waiting,
      capacity,
      pipelines,
      latencies,
      unseen: tick.answered_left_out ?? 0,
      leftOut,
    };
    this.snapshots.push(this.last);
    while (this.snapshots.length > 2 && this.snapshots[1].now <= now - MEASURED_MS) this.snapshots.shift();
    this.#point(before);
    this.interrupted = false;
    this.ticks += 1;
  }

  /** Keeps the slowest requests of the last minute. */
  #rank(answer) {
    const ended = answer[4];
    let bucket = this.slow.at(-1);
    if (!bucket || ended >= bucket.from + SLOW_BUCKET_MS) {
      bucket = { from: Math.floor(ended / SLOW_BUCKET_MS) * SLOW_BUCKET_MS, requests: [] };
      this.slow.push(bucket);
      if (this.slow.length > SLOW_BUCKETS) this.slow.shift();
    }
    bucket.requests.push(answer);
    if (bucket.requests.length > 4 * SLOWEST) bucket.requests = slowest(bucket.requests);
  }

  /** The slowest requests of the last minute, slowest first. */
  slowest() {
    const oldest = (this.last?.now ?? 0) - SLOW_BUCKET_MS * SLOW_BUCKETS;
    return slowest(this.slow.filter(({ from }) => from >= oldest).flatMap(({ requests }) => requests));
  }

  /** Adds the last tick to the point of the charts that is being made. */
  #point(before) {
    const { now, outcomes, waiting, capacity, latencies } = this.last;
    this.bucket ??= {
      from: before?.now ?? now,
      outcomes: before?.outcomes ?? outcomes,
      latencies: [],
      waiting: 0,
      measured: before !== null,
    };
    const bucket = this.bucket;
    bucket.latencies.push(...latencies);
    bucket.waiting = Math.max(bucket.waiting, waiting);
    const seconds = (now - bucket.from) / 1000;
    if (seconds * 1000 < BUCKET_MS) return;
    const sorted = bucket.latencies.sort((a, b) => a - b);
    const rate = (name) => ((outcomes[name] ?? 0) - (bucket.outcomes[name] ?? 0)) / seconds;
    const rates = Object.fromEntries(Object.keys(outcomes).map((name) => [name, rate(name)]));
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => percentile(sorted, q));
    this.history.push({ at: now, p50, p95, p99, rates, waiting: bucket.waiting, capacity });
    if (this.history.length > POINTS) this.history.shift();
    this.bucket = null;
  }

  /** Latency percentiles, rates and counts of the last ten seconds. */
  figures() {
    const sorted = this.snapshots
      .slice(1)
      .flatMap(({ latencies }) => latencies)
      .sort((a, b) => a - b);
    const [p50, p95, p99] = [0.5, 0.95, 0.99].map((q) => percentile(sorted, q));
    const [old, seconds] = this.#since(MEASURED_MS);
    const rate = old ? ((this.last.outcomes.done ?? 0) - (old.outcomes.done ?? 0)) / seconds : NaN;
    const mean = sorted.length ? sorted.reduce((sum, one) => sum + one, 0) / sorted.length : NaN;
    const unseen = this.snapshots.slice(1).reduce((sum, one) => sum + one.unseen, 0);
    return { p50, p95, p99, mean, rate, seen: sorted.length, unseen };
  }

  /** The snapshot of `ms` ago, or the oldest after it, and the seconds since. */
  #since(ms) {
    const { now } = this.last;
    const old = this.snapshots.find((one) => one.now >= now - ms - 250);
    return old && old.now < now ? [old, (now - old.now) / 1000] : [null, 0];
  }

  /** Share of the last two seconds that a chip was busy; NaN when it is not known yet. */
  load(chip) {
    if (!this.last) return NaN;
    const [old, seconds] = this.#since(LOAD_MS);
    return old ? Math.min(1, Math.max(0, (this.last.chips[chip] - old.chips[chip]) / (seconds * 1000))) : NaN;
  }

  /** What a slice did in the last ten seconds: counts, and the seconds they are of. */
  measured({ pipeline, index }) {
    const [old, seconds] = this.last ? this.#since(MEASURED_MS) : [null, 0];
    if (!old) return { passes: 0, requests: 0, busy: 0, seconds: 0, restarts: 0 };
    const [now, then] = [this.last, old].map(({ slices }) => slices[pipeline][index]);
    return {
      passes: now.passes - then.passes,
      requests: now.requests - then.requests,
      busy: now.busy_ms - then.busy_ms,
      restarts: now.restarts,
      seconds,
    };
  }

  /** The server's time that stands at the right end of a live timeline, at `when` (performance.now()). */
  head(when) {
    if (!this.last) return 0;
    return Math.min(this.last.now, when - this.offset - BEHIND_MS);
  }

  /** Slices on a chip. */
  slicesOn(chip) {
    return this.slices.filter(({ chips }) => chips.includes(chip));
  }
}

function slowest(requests) {
  return requests.sort((a, b) => b[4] - b[3] - (a[4] - a[3])).slice(0, SLOWEST);
}
