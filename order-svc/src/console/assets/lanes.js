// The live lanes: one per half message, the newest first, a bounded number. Filled by events; what
// events cannot tell (an earlier process, another replica) is asked for.

import { ask } from "./api.js";
import { byId, patch, say, timeOf } from "./dom.js";
import { apply, applyHalf, applyMovements, applyOrder, awaitsOrder, awaitsStock, inWords, isOpen, newLane, purposeOf, render } from "./lane.js";

const MOST_LANES = 40;
const QUIET_MS = 6_000; // an open lane that hears nothing for so long is asked about
const ASK_AT_ONCE = 8;
const ROUND_MS = 1_000;
const PLACED_KEPT = 50;
const ORPHAN_MS = 60_000; // a request whose answer was lost may still turn up for so long
const MOST_VAIN = 8; // a lane that nobody knows any more is asked about so often, until it hears something
const LISTED = 20; // of each list, when events were missed
/** Why events were missed, by the reason of a reset. */
const MISSED = {
  other_process: "another process answers, and tells only of what it does itself",
  too_old: "more happened meanwhile than is kept",
  unknown_id: "the service does not know the last one heard",
};

const lanes = new Map(); // by transaction id, oldest first
const elements = new Map();
const placed = new Map(); // by order id: what this page asked for
const changed = new Set();
let orphans = []; // requests whose answer was lost, the oldest first; they may not have arrived
let frame = null;
let total = 0;
let owed = null; // a reload that has not read everything yet
let reading = false;
let handlers = { show() {}, cancel() {}, settled() {} };

export function start(given) {
  handlers = given;
  setInterval(() => round().catch((error) => console.info("lanes:", error.message)), ROUND_MS);
}

export function event(name, data) {
  const about = lanesOf(name, data);
  for (const lane of about) {
    lane.vain = 0;
    if (apply(lane, name, data)) mark(lane);
  }
  if (about.length > 0 && ["delivered", "dropped", "parked", "order"].includes(name)) handlers.settled(name, about[0]);
}

/** An event is about its half message; the status of an order about all of them, its cancellation's too. */
function lanesOf(name, data) {
  const own = data.transaction_id ? get(data.transaction_id, name) : null;
  return [...new Set([own, ...(name === "order" ? ofOrder(data.order_id) : [])])].filter(Boolean);
}

/** An order that this page has placed; `id` is not known if the answer was lost. */
export function placedHere(id, what) {
  if (!id) {
    orphans = [...orphans, what].slice(-PLACED_KEPT);
    return;
  }
  placed.set(id, what);
  if (placed.size > PLACED_KEPT) placed.delete(placed.keys().next().value);
  for (const lane of lanes.values()) if (lane.order === id) mark(lane);
}

/** The stream begins anew; with a reason if events were missed, and whether the one before broke. What came
 * meanwhile is asked for. */
export function reload(reason, broke) {
  say(byId("lanes-empty"), "Nothing has happened yet. Place an order, and its half message shows here step by step.");
  // A stream that ended in order may have led to another replica, and nobody has died.
  const restarted = reason === "other_process" && broke;
  if (reason) say(byId("lanes-missed"), `Events were missed at ${timeOf(Date.now())}: ${MISSED[reason] ?? reason}. What the lists know is here.`);
  for (const lane of lanes.values()) {
    lane.missed ||= reason !== null;
    lane.vain = 0;
    if (isOpen(lane)) {
      if (restarted && !lane.steps.local) lane.interrupted = true;
      lane.listed ||= reason !== null;
      lane.seen = 0;
      mark(lane);
    }
  }
  // What an earlier one still owes is not forgotten.
  owed = { restarted: restarted || owed?.restarted, missed: reason !== null || owed?.missed };
  catchUp().catch((error) => console.info("lanes:", error.message));
}

/** Reads the lists for the reload; what fails is tried again by the next round. */
async function catchUp() {
  if (reading || !owed) return;
  const own = owed;
  reading = true;
  try {
    await readLists(own);
    if (own === owed) owed = null;
  } finally {
    reading = false;
  }
}

async function readLists({ restarted, missed }) {
  const read = async (path) => (await ask(path)).items;
  // The orders first: what they began with is older than what is open.
  if (missed) for (const order of (await read(`/orders?limit=${LISTED}`)).reverse()) missedOrder(order);
  for (const state of missed ? ["parked", "open"] : ["open"]) listed(await read(`/halves?state=${state}&limit=${LISTED}`), restarted);
}

/** One that may have ended while nobody listened. A void order may have no half message but itself. */
function missedOrder(order) {
  if (!order.transaction_id || order.transaction_id === order.id) return;
  const lane = get(order.transaction_id, "order");
  lane.listed ||= !lane.steps.stored;
  lane.purpose ??= purposeOf(order);
  applyOrder(lane, order);
  mark(lane);
}

function listed(halves, restarted) {
  for (const half of halves) {
    const lane = get(half.transaction_id, "half_stored");
    if (!lane) continue;
    if (!lane.steps.stored) Object.assign(lane, { interrupted: restarted, listed: true });
    applyHalf(lane, half);
    lane.seen = 0;
    mark(lane);
  }
}

/** The lanes of an order that are still here. */
const ofOrder = (id) => [...lanes.values()].filter((lane) => lane.order === id);

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

/** What is new of an order that was placed here, for who does not see its lane; nothing twice. */
function tell(lane) {
  const words = inWords(lane);
  if (words === lane.told) return;
  lane.told = words;
  say(byId("lanes-told"), words);
}

function draw() {
  frame = null;
  const list = byId("lanes");
  for (const transaction of changed) {
    const lane = lanes.get(transaction);
    if (!lane) continue;
    const old = elements.get(transaction);
    const focused = old?.contains(document.activeElement) ? document.activeElement : null;
    const element = render(lane, placed.get(lane.order), (name) => handlers[name](lane));
    if (placed.has(lane.order)) tell(lane);
    if (old) {
      patch(old, element);
      // A button that goes away takes the focus with it.
      if (focused && !focused.checkVisibility()) old.querySelector(".acts button").focus();
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
  catchUp().catch((error) => console.info("lanes:", error.message));
  const now = Date.now();
  orphans = orphans.filter((what) => now - what.at < ORPHAN_MS);
  const due = (lane) => now - (lane.asked ?? 0) > Math.min(30_000, 1_000 * 2 ** (lane.asks ?? 0));
  const isGivenUp = (lane) => lane.forgotten && lane.vain >= MOST_VAIN;
  const wanted = [...lanes.values()].reverse().filter((lane) => due(lane) && !isGivenUp(lane)
    && ((isOpen(lane) && now - lane.seen > QUIET_MS) || awaitsStock(lane) || awaitsOrder(lane) || !lane.steps.message || (!lane.steps.stored && !lane.forgotten)));
  await Promise.all(wanted.slice(0, ASK_AT_ONCE).map(async (lane) => {
    lane.asked = now;
    lane.asks = (lane.asks ?? 0) + 1;
    await refresh(lane, now);
    lane.vain = lane.forgotten ? (lane.vain ?? 0) + 1 : 0;
    mark(lane);
  }));
}

async function refresh(lane, now) {
  // One that cannot be read now is asked about again.
  const quiet = (error) => (error.status === 404 ? null : Promise.reject(error));
  if (!lane.steps.message || !lane.steps.stored || lane.steps.message.text === "committed" || (isOpen(lane) && now - lane.seen > QUIET_MS)) {
    const half = await ask(`/halves/${lane.transaction}`).catch(quiet);
    if (half) applyHalf(lane, half);
    // A replica that began later does not know what was closed before.
    lane.forgotten = !half && (lane.missed || !lane.steps.stored);
  }
  if (!lane.order) return;
  if (awaitsOrder(lane)) {
    const order = await ask(`/orders/${lane.order}`).catch(quiet);
    if (order) {
      for (const one of ofOrder(lane.order)) {
        applyOrder(one, order);
        mark(one);
      }
      adopt(lane);
    }
  }
  if (awaitsStock(lane)) {
    const { items } = await ask(`/api/movements?order_id=${lane.order}`);
    applyMovements(lane, items);
    if (!awaitsStock(lane)) handlers.settled("stock", lane);
  }
}

/** Finds the lane of a request whose answer was lost, by its user, its item and its time. */
function adopt(lane) {
  if (placed.has(lane.order)) return;
  const [item, ...more] = lane.items ?? [];
  const fits = (what) => what.user === lane.user && !more.length && what.sku === item?.sku && what.quantity === item.quantity
    && Math.abs(Date.parse(lane.steps.stored?.at ?? 0) - what.at) < ORPHAN_MS;
  const at = orphans.findIndex(fits);
  if (at >= 0) placedHere(lane.order, orphans.splice(at, 1)[0]);
}
