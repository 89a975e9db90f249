// What a control must show beside its text, WCAG AA (1.4.11): where it is, by its border or its ground, and
// where the focus is; and what charts and lanes say by colour. 3 : 1 each.
const channels = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
const light = (colour) => {
  const [r, g, b] = channels(colour).slice(0, 3).map((c) => {
    const s = c / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (one, other) => {
  const [a, b] = [light(one), light(other)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if ((channels(colour)[3] ?? 1) === 1) return colour;
  }
  return "rgb(255, 255, 255)";
};
const probe = document.body.appendChild(document.createElement("i"));
probe.style.color = "var(--main)";
const focus = getComputedStyle(probe).color;
probe.remove();
const wrong = [];
let seen = 0;
const holds = (what, element, found) => {
  seen += 1;
  if (found < 3) wrong.push(`${what} of ${element.id || element.textContent.trim().slice(0, 40) || element.className.baseVal}: ${found.toFixed(2)}`);
};
const shown = (selector) => [...document.querySelectorAll(selector)].filter((one) => !one.disabled && one.checkVisibility());
for (const control of shown("button, select, input:not([type=checkbox])")) {
  const [style, behind] = [getComputedStyle(control), ground(control.parentElement)];
  holds("the edge", control, Math.max(ratio(style.borderTopColor, behind), ratio(style.backgroundColor, behind)));
}
for (const control of shown("a[href], button, select, input, [tabindex='0']")) {
  holds("the focus", control, ratio(focus, ground(control.parentElement)));
  const { width, height } = control.getBoundingClientRect();
  const inLine = control.matches("p a:not(.pill), input[type=checkbox], .skip");
  if (!inLine && Math.min(width, height) < 24) wrong.push(`${control.id || control.textContent}: ${width} x ${height} is hard to hit`);
}
for (const line of shown(".series")) holds("the line", line, ratio(getComputedStyle(line).stroke, ground(line.closest("figure, td"))));
for (const bar of shown(".bars rect")) holds("the bar", bar, ratio(getComputedStyle(bar).fill, ground(bar.closest("figure"))));
for (const lane of shown(".lane.placed")) holds("the mark", lane, ratio(getComputedStyle(lane).borderLeftColor, ground(lane.parentElement)));
if (seen < 20 && !document.getElementById("dialog").open) wrong.push(`only ${seen} things were looked at`);
return wrong;
