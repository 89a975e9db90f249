// Stock per product, its books, and the light that says whether they agree.

import { ask } from "./api.js";
import { spark } from "./charts.js";
import { byId, h, patchRows, say } from "./dom.js";

const EVERY_MS = 5_000;
const SOON_MS = 400; // after an event, once for many
const OLD_SECONDS = 15; // what is older says nothing of now
const FIRST_MOST = 120; // points of a small chart

const history = new Map(); // by sku: [available]
let soon = null;
let asking = false;
let offered = () => {};

export function start(offer) {
  offered = offer;
  load();
  setInterval(load, EVERY_MS);
}

/** Something has changed: look soon. */
export function touch() {
  soon ??= setTimeout(() => {
    soon = null;
    load();
  }, SOON_MS);
}

async function load() {
  if (asking) return;
  asking = true;
  try {
    show(await ask("/api/stock"));
  } catch (error) {
    say(byId("light"), "books: cannot be read", "unknown");
    say(byId("books"), `The stock cannot be read: ${error.message}`);
    if (history.size === 0) byId("stock").tBodies[0].replaceChildren(h("tr", {}, h("td", { colspan: 7, class: "empty problem" }, error.message)));
  } finally {
    asking = false;
  }
}

function show(books) {
  offered(books.items);
  const rows = books.items.map((line) => {
    const points = history.get(line.sku) ?? [];
    points.push(line.available);
    if (points.length > FIRST_MOST) points.shift();
    history.set(line.sku, points);
    const wrong = line.difference !== 0 || !line.adds_up;
    const tone = wrong ? (books.state === "broken" ? "bad" : "warn") : null;
    const cell = (name, value) => h("td", { "data-col": name, class: name === "difference" ? tone : null }, String(value));
    return h("tr", { "data-row": line.sku, "data-sku": line.sku },
      h("th", { scope: "row" }, line.sku),
      cell("received", line.received), cell("available", line.available), cell("live", line.live),
      cell("difference", line.received - line.available - line.live), cell("restored", line.restored),
      h("td", {}, spark(points, `available of ${line.sku}, from ${points[0]} to ${points.at(-1)}`)));
  });
  const empty = h("tr", {}, h("td", { colspan: 7, class: "empty" }, "There are no products. Add one with PUT /products/{sku} at stock-svc."));
  patchRows(byId("stock").tBodies[0], rows.length ? rows : [empty]);
  light(books);
}

function light(books) {
  const off = books.items.filter((line) => line.difference !== 0 || !line.adds_up);
  const words = off.slice(0, 3).map((line) => line.adds_up
    ? `${line.sku}: ${line.difference > 0 ? `${line.difference} taken without a standing order` : `${-line.difference} in orders that were not taken`}`
    : `${line.sku}: ${line.received} received - ${line.deducted} taken + ${line.restored} restored is not ${line.available}`);
  const sums = books.items.reduce((sum, line) => [sum[0] + line.received, sum[1] + line.available, sum[2] + line.live], [0, 0, 0]);
  const text = { balanced: "books agree", settling: "books settling", broken: "books broken" }[books.state];
  // What was not looked at may differ: green would be said of a part.
  const isPart = books.truncated && books.state === "balanced";
  const isOld = books.age_seconds > OLD_SECONDS;
  const verdict = isOld ? `books of ${books.age_seconds} s ago` : isPart ? "books: not all looked at" : text;
  say(byId("light"), verdict, isOld || isPart ? "unknown" : books.state);
  const way = books.under_way;
  const under = way && !way.unknown ? [[way.open_halves, "open"], [way.parked_halves, "parked"], [way.dead_letters, "dead letters"], [way.waiting, "waiting at stock-svc"]].filter(([count]) => count).map(([count, what]) => `${count} ${what}`) : [];
  const detail = books.state === "balanced"
    ? `${sums[0]} received = ${sums[1]} available + ${sums[2]} sold`
    : words.join("; ") + (under.length ? ` (${under.join(", ")})` : "");
  const age = books.age_seconds > 1 ? `, ${books.age_seconds} s ago` : "";
  // With the verdict: this is a live region, and the light is none.
  say(byId("books"), `${verdict}: ${books.truncated ? `of the first ${books.items.length} products: ` : ""}${detail}${isOld ? "" : age}`);
}
