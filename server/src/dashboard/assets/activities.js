// What the chips did, in buffers that never grow: the oldest activities make room for the newest.

/** Most activities that are kept, of all chips together. */
const ACTIVITIES = 1 << 19;
/** Most request labels that are kept, of all activities together. */
const LABELS = 1 << 20;
const GAPS = 512;

export const KINDS = ["pass", "send", "receive", "stall"];

/** Activities of one chip, ordered by their ends. Positions count from the first one ever, `first` is the oldest still here. */
export class ChipActivities {
  constructor(capacity) {
    this.mask = capacity - 1;
    this.began = new Float64Array(capacity);
    this.ended = new Float64Array(capacity);
    this.slice = new Uint16Array(capacity);
    this.kind = new Uint8Array(capacity);
    this.step = new Int16Array(capacity);
    this.labels = new Float64Array(capacity);
    this.count = new Uint16Array(capacity);
    /** All labels of an activity in one number, to see whether two are of the same requests. */
    this.key = new Uint32Array(capacity);
    this.end = 0;
  }

  get first() {
    return Math.max(0, this.end - this.mask - 1);
  }

  /** The first position whose activity ends at `time` or later. */
  from(time) {
    let low = this.first;
    let high = this.end;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if (this.ended[middle & this.mask] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Activities of all chips, and the requests they were for. */
export class Activities {
  constructor(chips) {
    const each = 2 ** Math.floor(Math.log2(ACTIVITIES / Math.max(1, chips.length)));
    const capacity = Math.min(1 << 17, Math.max(1 << 12, each));
    this.chips = new Map(chips.map((chip) => [chip, new ChipActivities(capacity)]));
    this.pool = new Uint32Array(LABELS);
    this.pooled = 0;
    this.total = 0;
    this.gaps = []; // [from, to]: times of which the server left something out
  }

  /** Takes a tick's activities; `sliceAt(pipeline, slice)` numbers slices through. */
  take(list, sliceAt) {
    list.sort((a, b) => a[5] - b[5]);
    for (const [pipeline, slice, chips, kind, began, ended, step, labels] of list) {
      const known = KINDS.indexOf(kind);
      const number = sliceAt(pipeline, slice);
      if (known < 0 || number === undefined) continue;
      const at = this.pooled;
      let key = 0;
      for (const label of labels) {
        const value = parseInt(label, 16) >>> 0;
        this.pool[this.pooled++ & (LABELS - 1)] = value;
        key = (Math.imul(key, 31) + value) >>> 0;
      }
      for (const id of chips) {
        const chip = this.chips.get(id);
        if (!chip) continue;
        const place = chip.end++ & chip.mask;
        chip.began[place] = began;
        chip.ended[place] = ended;
        chip.slice[place] = number;
        chip.kind[place] = known;
        chip.step[place] = step ?? -1;
        chip.labels[place] = at;
        chip.count[place] = labels.length;
        chip.key[place] = key;
      }
      this.total += 1;
    }
  }

  /** Notes that the server left out activities between two times. */
  miss(from, to) {
    if (this.gaps.at(-1)?.[1] === from) this.gaps.at(-1)[1] = to;
    else this.gaps.push([from, to]);
    if (this.gaps.length > GAPS) this.gaps.shift();
  }

  /** Label number `index` of the activity in `place`; 0 when it made room for newer ones. */
  label(chip, place, index) {
    const at = chip.labels[place] + index;
    return index < chip.count[place] && at >= this.pooled - LABELS ? this.pool[at & (LABELS - 1)] : 0;
  }

  /** Whether the activity in `place` was for the request `label`. */
  isOf(chip, place, label) {
    for (let index = 0; index < chip.count[place]; index++) if (this.label(chip, place, index) === label) return true;
    return false;
  }
}

/** A label as the server writes it. */
export const labelText = (label) => label.toString(16).padStart(8, "0");
