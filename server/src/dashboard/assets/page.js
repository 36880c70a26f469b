// Pieces of the page. What the server says only ever becomes text: robots choose their own names.

export const byId = (id) => document.getElementById(id);

/** Sets text only when it changed, so that nothing is laid out in vain. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** An HTML element with attributes and children; strings become text. */
export function html(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** An SVG element. */
export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** The one tooltip, at a point of the window. */
export function tip(text, x, y) {
  const node = byId("tooltip");
  node.hidden = !text;
  if (!text) return;
  say(node, text);
  const { width, height } = node.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
  const top = y + 14 + height > innerHeight ? y - 10 - height : y + 14;
  node.style.transform = `translate(${Math.max(2, left)}px, ${Math.max(2, top)}px)`;
}
