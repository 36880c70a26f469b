// What the mouse and the keys do to the timeline.

import { byId, say, tip } from "./page.js";

const ZOOM = 1.5;
const PAN = 0.15;

/**
 * Lets the user drive a timeline; `open(labels)` is called with the requests of an activity.
 * Gives what is to be called with every frame.
 */
export function driveTimeline(timeline, open) {
  const follow = drivePointer(timeline, open);
  const { canvas } = timeline;
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !key(timeline, open, event.key)) return;
    event.preventDefault();
    const { cursor } = timeline;
    if (event.key === "Enter" || !cursor || cursor.at < 0 || !canvas.dataset.cursor) return tip("");
    const [x, y] = canvas.dataset.cursor.split(",").map(Number);
    const box = canvas.getBoundingClientRect();
    const words = timeline.words(cursor);
    tip(words, box.left + x, box.top + y);
    say(byId("timeline-said"), words.replaceAll("\n", " · "));
  });
  canvas.addEventListener("blur", () => tip(""));
  const turn = (id, act) => byId(id).addEventListener("click", act);
  turn("pause", () => toggle(timeline));
  turn("zoom-in", () => timeline.zoom(1 / ZOOM));
  turn("zoom-out", () => timeline.zoom(ZOOM));
  // Space pauses from anywhere, except where it means something already.
  document.addEventListener("keydown", (event) => {
    if (event.key !== " " || event.target.closest("button, input, [role=button], dialog, a")) return;
    event.preventDefault();
    toggle(timeline);
  });
  return follow;
}

function toggle(timeline) {
  if (timeline.paused) timeline.resume();
  else timeline.pause(performance.now());
}

/** Does what a key says; gives whether it says anything. */
function key(timeline, open, pressed) {
  const now = performance.now();
  const acts = {
    "+": () => timeline.zoom(1 / ZOOM),
    "=": () => timeline.zoom(1 / ZOOM),
    "-": () => timeline.zoom(ZOOM),
    ArrowLeft: () => timeline.pan(-PAN, now),
    ArrowRight: () => timeline.pan(PAN, now),
    End: () => timeline.resume(),
    ArrowDown: () => timeline.moveRow(1),
    ArrowUp: () => timeline.moveRow(-1),
    ",": () => timeline.moveActivity(-1, now),
    ".": () => timeline.moveActivity(1, now),
    Enter: () => timeline.cursor && timeline.cursor.at >= 0 && open(timeline.labels(timeline.cursor)),
  };
  if (!acts[pressed]) return false;
  acts[pressed]();
  timeline.frame(now);
  return true;
}

function drivePointer(timeline, open) {
  const { canvas } = timeline;
  let drag = null; // { x, moved }
  let pointer = null; // where it is, on the canvas and in the window

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    drag = { x: event.clientX, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    pointer = { x: event.offsetX, y: event.offsetY, clientX: event.clientX, clientY: event.clientY };
    if (!drag) return hover(timeline, pointer);
    const by = event.clientX - drag.x;
    if (!drag.moved && Math.abs(by) < 4) return;
    drag = { x: event.clientX, moved: true };
    canvas.classList.add("grabbing");
    tip("");
    timeline.pan(-by / canvas.clientWidth, performance.now());
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { moved } = drag;
    drag = null;
    canvas.classList.remove("grabbing");
    const hit = moved ? null : timeline.hit(event.offsetX, event.offsetY);
    if (hit) open(timeline.labels(hit));
  });
  canvas.addEventListener("pointercancel", () => {
    drag = null;
    canvas.classList.remove("grabbing");
  });
  canvas.addEventListener("pointerleave", () => {
    pointer = null;
    timeline.hovered = 0;
    tip("");
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      // A page can be scrolled past the timeline with shift, and zoomed as a whole with ctrl.
      if (event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      timeline.zoom(Math.exp(Math.sign(event.deltaY) * Math.min(0.4, Math.abs(event.deltaY) / 300)), event.offsetX);
    },
    { passive: false },
  );
  // A live timeline moves under a pointer that rests.
  return () => pointer && !drag && !timeline.paused && hover(timeline, pointer);
}

/** Shows what is under the pointer, and lets its request stand out on all chips. */
function hover(timeline, { x, y, clientX, clientY }) {
  const hit = timeline.hit(x, y);
  const labels = hit ? timeline.labels(hit) : [];
  timeline.hovered = labels.length ? parseInt(labels[0], 16) : 0;
  tip(hit ? timeline.words(hit) : "", clientX, clientY);
}
