// How numbers, stages and chips are written.

export const STAGES = ["vision", "prefix", "expert"];

/** V, P or E. */
export const letter = (stage) => stage.charAt(0).toUpperCase();

const missing = "–";

/** 3 digits that matter, for times in milliseconds. */
export function ms(value) {
  if (!Number.isFinite(value)) return missing;
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Events in a second. */
export function rate(value) {
  if (!Number.isFinite(value)) return missing;
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export const percent = (share) => (Number.isFinite(share) ? `${Math.round(share * 100)}%` : missing);

export function bytes(value) {
  for (const [unit, size] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ])
    if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
  return `${value} B`;
}

/** The server's time, counted from the start of its pipeline. */
export function clock(time, digits = 0) {
  const sign = time < 0 ? "−" : "";
  const seconds = Math.abs(time) / 1000;
  const hours = Math.floor(seconds / 3600);
  const minutes = Math.floor(seconds / 60) % 60;
  const rest = (seconds % 60).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return `${sign}${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${rest}`;
}

/** "vision 0-26", as far as a slice says it. */
export const sliceName = ({ stage, layers }) => (layers ? `${stage} ${layers}` : stage);

export const chipsName = (chips) => (chips.length === 1 ? `chip ${chips[0]}` : `chips ${chips.join(", ")}`);
