// Makes elements. Text goes in as text, never as markup: what the services say may come from anybody.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** h("td", {class: "acts", onclick: f}, "text", element, ...); null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Sets text only if it changed: a screen reader says a live region again each time it is set. */
export function say(element, text, state) {
  if (element.textContent !== text) element.textContent = text;
  if (state !== undefined && element.dataset.state !== state) element.dataset.state = state;
}

/**
 * Makes `old` look like `fresh` and keeps what is the same: an element that is replaced loses the
 * focus, and a click that has begun on it. Kept elements keep their first listeners.
 */
export function patch(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  const alike = old.nodeName === fresh.nodeName && old.nodeType === Node.ELEMENT_NODE && old.childNodes.length === fresh.childNodes.length;
  if (!alike) {
    old.replaceWith(fresh);
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const news = [...fresh.childNodes];
  [...old.childNodes].forEach((child, at) => patch(child, news[at]));
}

/** The same for the rows of a table's body, told apart by data-row. */
export function patchRows(body, rows) {
  const known = new Map([...body.rows].map((row) => [row.dataset.row, row]));
  const next = rows.map((row) => {
    const old = known.get(row.dataset.row);
    if (!old || row.dataset.row === undefined) return row;
    patch(old, row);
    return old;
  });
  if (next.length === body.rows.length && next.every((row, at) => row === body.rows[at])) return;
  const focused = document.activeElement;
  body.replaceChildren(...next);
  if (body.contains(focused)) focused.focus();
}

export const short = (id) => (id ? `…${id.slice(-8)}` : "");

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false, fractionalSecondDigits: 3 });

const day = new Intl.DateTimeFormat(undefined, { dateStyle: "short" });

/** With the day, if it is not today's. */
export function timeOf(at) {
  if (!at) return "";
  const [then, now] = [new Date(at), new Date()];
  return then.toDateString() === now.toDateString() ? clock.format(then) : `${day.format(then)} ${clock.format(then)}`;
}

export function seconds(number) {
  if (number < 120) return `${Math.round(number)} s`;
  if (number < 7200) return `${Math.round(number / 60)} min`;
  return `${Math.round(number / 3600)} h`;
}

export function millis(number) {
  if (number < 1000) return `${Math.round(number)} ms`;
  return number < 100_000 ? `${(number / 1000).toFixed(1)} s` : seconds(number / 1000);
}
