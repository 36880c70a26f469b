// Colours of requests and series: Okabe and Ito's, which people with any colour vision tell apart, shaded for the page's ground.

const REQUESTS = {
  light: ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a500"],
  dark: ["#3d94d6", "#e69f00", "#00a97c", "#cc79a7", "#7cc8f2", "#e0701e", "#f0e442"],
};

const NAMES = ["page", "panel", "line", "text", "quiet", "accent", "good", "warn", "bad", "grid", "load", "wait"];

/** The colours of the theme now shown. */
export const theme = { dark: false, requests: REQUESTS.light, ink: [] };

const sight = matchMedia("(prefers-color-scheme: dark)");

/** Whether black or white is read better on a colour. */
function inkOn(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 > 0.2 ? "#000000" : "#ffffff";
}

/** Reads the colours of the style sheet; canvases cannot use its variables. */
export function readTheme() {
  const chosen = document.documentElement.dataset.theme;
  theme.dark = chosen ? chosen === "dark" : sight.matches;
  theme.requests = theme.dark ? REQUESTS.dark : REQUESTS.light;
  theme.ink = theme.requests.map(inkOn);
  const probe = document.createElement("i");
  document.body.append(probe);
  for (const name of NAMES) {
    probe.style.color = `var(--${name})`;
    theme[name] = getComputedStyle(probe).color;
  }
  probe.remove();
}

/** Calls when the system changes between light and dark. */
export const onThemeChange = (call) => sight.addEventListener("change", call);

/** Which of the colours a request has: the same on every chip. */
export const colourOf = (label) => (Math.imul(label, 0x9e3779b1) >>> 0) % REQUESTS.light.length;

/** A canvas at the device's resolution; gives its context, scaled to CSS pixels, and its size. */
export function canvasOf(canvas) {
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const height = canvas.clientHeight;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}
