// The live lanes: one per half message, the newest first, a bounded number. Filled by events; what
// events cannot tell (an earlier process, another replica) is asked for.

import { ask } from "./api.js";
import { byId, patch, say } from "./dom.js";
import { apply, applyHalf, applyMovements, applyOrder, awaitsStock, isOpen, newLane, render } from "./lane.js";

const MOST_LANES = 40;
const QUIET_MS = 6_000; // an open lane that hears nothing for so long is asked about
const ASK_AT_ONCE = 8;
const ROUND_MS = 1_000;
const PLACED_KEPT = 50;

const lanes = new Map(); // by transaction id, oldest first
const elements = new Map();
const placed = new Map(); // by order id: what this page asked for
const changed = new Set();
const orphans = []; // requests whose answer was lost
let frame = null;
let total = 0;
let handlers = { show() {}, cancel() {}, settled() {} };

export function start(given) {
  handlers = given;
  setInterval(() => round().catch((error) => console.info("lanes:", error.message)), ROUND_MS);
}

export function event(name, data) {
  const lane = data.transaction_id ? get(data.transaction_id, name) : ofOrder(data.order_id);
  if (!lane) return;
  if (apply(lane, name, data)) mark(lane);
  if (["delivered", "dropped", "parked", "order"].includes(name)) handlers.settled(name, lane);
}

/** An order that this page has placed; `id` is not known if the answer was lost. */
export function placedHere(id, what) {
  if (!id) return orphans.push(what);
  placed.set(id, what);
  if (placed.size > PLACED_KEPT) placed.delete(placed.keys().next().value);
  for (const lane of lanes.values()) if (lane.order === id) mark(lane);
}

/** The stream begins anew: what came meanwhile is asked for. */
export async function reload(restarted) {
  for (const lane of lanes.values()) {
    if (isOpen(lane)) {
      if (restarted && !lane.steps.local) lane.interrupted = true;
      lane.seen = 0;
      mark(lane);
    }
  }
  const { items } = await ask("/halves?state=open&limit=20");
  for (const half of items) {
    const lane = get(half.transaction_id, "half_stored");
    if (!lane) continue;
    if (!lane.steps.stored) Object.assign(lane, { interrupted: restarted, listed: true });
    applyHalf(lane, half);
    lane.seen = 0;
    mark(lane);
  }
}

/** The lane that an order began with, if it is still here. */
const ofOrder = (id) => [...lanes.values()].find((lane) => lane.order === id);

function get(transaction, name) {
  const known = lanes.get(transaction);
  if (known) return known;
  // A change of an order long past makes no lane.
  if (!["half_stored", "order", "checked", "decided", "parked", "reopened"].includes(name)) return null;
  const lane = newLane(transaction);
  lanes.set(transaction, lane);
  total += 1;
  if (lanes.size > MOST_LANES) {
    const oldest = lanes.keys().next().value;
    lanes.delete(oldest);
    elements.get(oldest)?.remove();
    elements.delete(oldest);
    changed.delete(oldest);
  }
  mark(lane);
  return lane;
}

function mark(lane) {
  changed.add(lane.transaction);
  frame ??= requestAnimationFrame(draw);
}

function draw() {
  frame = null;
  const list = byId("lanes");
  for (const transaction of changed) {
    const lane = lanes.get(transaction);
    if (!lane) continue;
    const old = elements.get(transaction);
    const element = render(lane, placed.get(lane.order), (name) => handlers[name](lane));
    if (old) {
      patch(old, element);
    } else {
      elements.set(transaction, element);
      list.prepend(element);
    }
  }
  changed.clear();
  byId("lanes-empty").hidden = lanes.size > 0;
  say(byId("lanes-count"), total > lanes.size ? `the last ${lanes.size} of ${total}` : `${lanes.size}`);
}

/** Asks about lanes that events have left unfinished, a few at a time. */
async function round() {
  const now = Date.now();
  const due = (lane) => now - (lane.asked ?? 0) > Math.min(30_000, 1_000 * 2 ** (lane.asks ?? 0));
  const wanted = [...lanes.values()].reverse().filter((lane) => due(lane)
    && ((isOpen(lane) && now - lane.seen > QUIET_MS) || awaitsStock(lane) || (lane.order && !lane.items) || !lane.steps.message));
  await Promise.all(wanted.slice(0, ASK_AT_ONCE).map(async (lane) => {
    lane.asked = now;
    lane.asks = (lane.asks ?? 0) + 1;
    await refresh(lane, now);
    mark(lane);
  }));
}

async function refresh(lane, now) {
  // One that cannot be read now is asked about again.
  const quiet = (error) => (error.status === 404 ? null : Promise.reject(error));
  if (!lane.steps.message || (isOpen(lane) && now - lane.seen > QUIET_MS)) {
    const half = await ask(`/halves/${lane.transaction}`).catch(quiet);
    if (half) applyHalf(lane, half);
  }
  if (!lane.order) return;
  if (!lane.items || !lane.status) {
    const order = await ask(`/orders/${lane.order}`).catch(quiet);
    if (order) {
      applyOrder(lane, order);
      adopt(lane);
    }
  }
  if (awaitsStock(lane)) {
    const { items } = await ask(`/api/movements?order_id=${lane.order}`);
    applyMovements(lane, items);
    if (!awaitsStock(lane)) handlers.settled("stock", lane);
  }
}

/** Finds the lane of a request whose answer was lost, by its user and its time. */
function adopt(lane) {
  if (placed.has(lane.order)) return;
  const fits = (what) => what.user === lane.user && Math.abs(Date.parse(lane.steps.stored?.at ?? 0) - what.at) < 60_000;
  const at = orphans.findIndex(fits);
  if (at >= 0) placedHere(lane.order, orphans.splice(at, 1)[0]);
}
