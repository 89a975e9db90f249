// Small charts as SVG. Each has its numbers as text beside it: nothing is told by shape or colour alone.

import { h, svg } from "./dom.js";

const [WIDTH, HEIGHT] = [320, 84];

/** A line through the points, with words for who cannot see it. */
export function spark(points, words) {
  const [width, height] = [144, 28];
  const path = line(points, width, height - 4, Math.max(...points, 1), Math.min(...points, 0));
  return svg("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words },
    svg("path", { class: "series c0", d: path, transform: "translate(0 2)" }));
}

function line(points, width, height, most, least) {
  const step = points.length > 1 ? width / (points.length - 1) : width;
  const y = (value) => height - ((value - least) / (most - least || 1)) * height;
  if (points.length === 1) return `M0 ${y(points[0])}H${width}`;
  return points.map((value, at) => `${at ? "L" : "M"}${(at * step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}

/** series: [{name, points, text}] */
export function lines(into, series) {
  const most = Math.max(1, ...series.flatMap(({ points }) => points));
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": series.map(({ name, text }) => `${name}: ${text}`).join("; ") },
    svg("path", { class: "axis", d: `M0 ${HEIGHT - 1}H${WIDTH}M0 1H${WIDTH}` }),
    series.map(({ points }, at) => (points.length ? svg("path", { class: `series c${at}`, d: line(points, WIDTH, HEIGHT - 6, most, 0), transform: "translate(0 3)" }) : null)));
  const legend = h("ul", { class: "legend" }, series.map(({ name, text }, at) =>
    h("li", {}, svg("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" }, svg("path", { class: `series c${at}`, d: "M0 4H26" })), `${name}: ${text}`)));
  into.replaceChildren(chart, legend);
}

/** rows: [[name, value, text]] */
export function bars(into, rows, empty) {
  if (rows.length === 0) {
    into.replaceChildren(h("p", { class: "empty" }, empty));
    return;
  }
  const most = Math.max(...rows.map(([, value]) => value), 1);
  into.replaceChildren(h("div", { class: "bars" }, rows.flatMap(([name, value, text]) => [
    h("span", {}, name),
    svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { width: value > 0 ? Math.max(0.5, (value / most) * 100) : 0, height: 10 })),
    h("span", { class: "value" }, text ?? String(value)),
  ])));
}
