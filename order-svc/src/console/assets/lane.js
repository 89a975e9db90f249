// One lane: what is known of one half message and its order, and how that is shown. Pure: events go
// in, elements come out.

import { h, millis, short, timeOf } from "./dom.js";

/** The purpose of half messages that tell stock-svc of an order; all others restore stock. */
const CREATED = "order.created";
/** The purpose of cancellations, and the only status of an order that they make. */
const CANCEL = "order.cancel";
const CANCELLED = "cancelled";
/** What stock-svc has done when nothing more is to come. */
const ENDS = ["restored", "nothing to restore", "sold", "untouched", "refused"];
/** States of a half message that is decided, and the records that made it so. */
const VERDICTS = ["committed", "rolled_back"];

/** The parts of a lane, in their order; each is null or {text, tone, at, why}. */
const PARTS = [
  ["stored", "Half message"],
  ["local", "Local transaction"],
  ["decided", "Decision"],
  ["message", "Message"],
  ["stock", "Stock"],
];

export function newLane(transaction) {
  return { transaction, order: null, status: null, purpose: null, user: null, items: null, checks: { before: 0, until: 0, heard: new Set() }, lastCheck: null, acted: null, seen: Date.now(), interrupted: false, listed: false, missed: false, forgotten: false, steps: {} };
}

/** Whether nobody has decided: the lane has something to wait for. */
export const isOpen = (lane) => !lane.steps.decided || (lane.steps.message?.text === "parked");

const by = (who, operator) => (operator ? `by ${who} ${operator}` : `by ${who}`);

/** Takes an event in; true if it changed anything. */
export function apply(lane, name, event) {
  const { steps } = lane;
  lane.order ??= event.order_id ?? null;
  lane.seen = Date.now();
  const { at } = event;
  switch (name) {
    case "half_stored":
      lane.purpose = event.purpose;
      steps.stored = { text: "stored", tone: "info", at, why: `partition ${event.partition}, offset ${event.offset}` };
      return true;
    case "local_transaction":
      lane.localOutcome = event.outcome;
      if (["failed", "timed_out", "unknown"].includes(event.outcome)) {
        const words = { failed: "failed", timed_out: "took too long", unknown: "cannot tell" };
        steps.local ??= { text: words[event.outcome], tone: "warn", at, why: event.reason };
      } else {
        steps.local ??= { text: "done", tone: "info", at };
      }
      return true;
    case "order":
      if (lane.status === event.status) return false;
      move(lane, event.status, at, event.reason);
      return true;
    case "checked":
      heardCheck(lane.checks, event);
      // Events that are told again must not put an old answer in place of a new one.
      if (Date.parse(lane.lastCheck?.at ?? "") > Date.parse(at)) return true;
      lane.lastCheck = { answer: event.answer, at, reason: event.reason };
      return true;
    case "decided":
      // A restarted owner reads again what its progress does not cover.
      if (steps.decided) return false;
      steps.decided = { text: event.verdict === "commit" ? "deliver" : "drop", tone: "info", at, why: by(event.by, event.operator) + (event.reason ? `: ${event.reason}` : "") };
      return true;
    case "delivered":
      // Told again by the next owner of its partition, which cannot know when it was.
      if (steps.message?.text === "delivered" && (steps.message.at || !at)) return false;
      steps.message = { text: "delivered", tone: "info", at, why: event.topic };
      return true;
    case "dropped":
      if (steps.message?.text === "dropped") return false;
      steps.message = { text: "dropped", tone: "good", at };
      return true;
    case "parked":
      steps.message = { text: "parked", tone: "bad", at, why: `${event.cause}: ${event.reason}` };
      return true;
    case "reopened":
      delete steps.message;
      delete steps.decided;
      lane.lastCheck = null;
      // A life of its own; told again it changes nothing.
      if (Date.parse(at) > lane.checks.until) lane.checks = { before: 0, until: Date.parse(at), heard: new Set() };
      steps.local ??= null;
      return true;
    default:
      return false;
  }
}

/** One check more, unless it was told before or is in the count already. A failed one is no attempt. */
function heardCheck(checks, { answer, at }) {
  const when = Date.parse(at);
  if (answer !== "failed" && when > checks.until) checks.heard.add(when);
}

/** The store's count, up to the last record that it counts; checks heard of later come on top. */
function countedChecks(checks, half) {
  const last = half.history?.findLast((entry) => ["checked", "parked", "reopened", ...VERDICTS].includes(entry.event) && entry.at);
  const until = Date.parse(last?.at ?? "");
  if (!(until >= checks.until)) return;
  // The check that decides is told by its decision, and has no record of its own.
  checks.before = half.attempts + (VERDICTS.includes(last.event) && /\bby check-back/.test(last.detail) ? 1 : 0);
  checks.until = until;
  for (const when of checks.heard) if (when <= until) checks.heard.delete(when);
}

const checkCount = ({ before, heard }) => before + heard.size;

/** Another status of its order. */
function move(lane, status, at, reason) {
  Object.assign(lane, { status, statusAt: Date.parse(at) });
  // Any other status is not what a cancellation has done: the order is as it was.
  if (lane.purpose !== CANCEL || status === CANCELLED) lane.steps.local = orderStep(status, at, reason);
  // What was sold comes back.
  if (status === CANCELLED) delete lane.steps.stock;
}

function orderStep(status, at, reason) {
  const tone = { confirmed: "good", pending_stock: "info", void: "warn", rejected: "warn", cancelled: "warn" }[status] ?? "info";
  return { text: `order ${status.replace("_", " ")}`, tone, at, why: reason ?? null };
}

/** What GET /orders and GET /orders/{id} say. */
export function applyOrder(lane, order) {
  lane.order = order.id;
  lane.user = order.user_id;
  lane.items = order.items;
  if (lane.status === order.status && lane.steps.local) return;
  // The answer may be older than an event that has come meanwhile.
  if (lane.statusAt > Date.parse(order.updated_at)) return;
  move(lane, order.status, order.updated_at, order.reason);
}

/** Whether there is something to ask of its order. One that was asked for before the cancellation was committed is old. */
export const awaitsOrder = (lane) => lane.order !== null
  && (!lane.items || !lane.status || (lane.purpose === CANCEL && lane.steps.decided?.text === "deliver" && lane.status !== CANCELLED));

/** What GET /halves and GET /halves/{id} say, for what was missed: events are more exact, so they stay. */
export function applyHalf(lane, half) {
  lane.order ??= half.key;
  lane.purpose ??= half.purpose;
  const step = (event) => half.history?.findLast((entry) => entry.event === event);
  lane.steps.stored ??= { text: "stored", tone: "info", at: half.stored_at, why: `partition ${half.partition}, offset ${half.offset}` };
  countedChecks(lane.checks, half);
  const { message } = lane.steps;
  // The list has no times; who asks for it alone gets them.
  if (half.state === "parked" && (!message || message.text === "committed" || (message.text === "parked" && !message.at))) {
    lane.steps.message = { text: "parked", tone: "bad", at: step("parked")?.at, why: half.last_outcome };
  }
  // A commit that was read is not yet a message that its topic has; a dropped one has nothing to come.
  const closed = { committed: ["deliver", "committed", "info"], rolled_back: ["drop", "dropped", "good"] }[half.state];
  if (!closed) return;
  const decision = step(half.state);
  const who = /\bby ([a-z-]+(?: [^:]+)?)/.exec(decision?.detail ?? half.last_outcome ?? "");
  lane.steps.decided ??= { text: closed[0], tone: "info", at: decision?.at, why: who ? `by ${who[1]}` : null };
  if (!lane.steps.message || lane.steps.message.text === "parked") {
    // What is dropped is dropped by its decision; when a delivery was, the store does not say.
    lane.steps.message = { text: closed[1], tone: closed[2], at: closed[1] === "dropped" ? decision?.at : null, why: null };
  }
}

/** The purpose of the half message that an order began with. */
export const purposeOf = (order) => (order.flow === "saga" ? CREATED : "order.rollback");

/** What stock-svc's movements say of the order. */
export function applyMovements(lane, movements) {
  const of = (kind) => movements.filter((movement) => movement.kind === kind);
  const words = (list) => list.map((movement) => `${movement.quantity} ${movement.sku}`).join(", ");
  const [restored, voided, deducted] = [of("restore"), of("void"), of("deduct")];
  const sold = lane.status !== CANCELLED;
  // Whoever acts on a message has got it.
  const [by, ...more] = lane.purpose === CREATED ? deducted : [...restored, ...voided];
  lane.acted = by && more.reduce((first, { created_at }) => (Date.parse(created_at) < Date.parse(first) ? created_at : first), by.created_at);
  if ((by || (lane.purpose === CREATED && lane.status === "rejected")) && (lane.forgotten ? !lane.steps.message : lane.steps.message?.text === "committed")) lane.steps.message = { text: "delivered", tone: "info", at: null, why: "stock-svc has acted on it" };
  if (restored.length) lane.steps.stock = { text: "restored", tone: "good", at: restored.at(-1).created_at, why: words(restored) };
  else if (voided.length) lane.steps.stock = { text: "nothing to restore", tone: "good", at: voided[0].created_at };
  else if (lane.status === "rejected") lane.steps.stock = { text: "refused", tone: "warn", at: null };
  else if (deducted.length && sold && lane.purpose === CREATED) lane.steps.stock = { text: "sold", tone: "good", at: deducted.at(-1).created_at, why: words(deducted) };
  else if (sold && (lane.steps.message?.text === "dropped" || (lane.forgotten && lane.status === "confirmed" && deducted.length))) {
    lane.steps.stock = deducted.length
      ? { text: "sold", tone: "good", at: deducted.at(-1).created_at, why: words(deducted) }
      : { text: "untouched", tone: "good", at: null };
  } else if (deducted.length) lane.steps.stock = { text: "deducted", tone: "info", at: deducted.at(-1).created_at, why: words(deducted) };
}

/** Whether stock-svc has still to do something for it. */
export const awaitsStock = (lane) =>
  lane.order !== null && (lane.forgotten || ["committed", "delivered", "dropped"].includes(lane.steps.message?.text))
  && !ENDS.includes(lane.steps.stock?.text);

function waiting(lane, part) {
  if (part === "local") return lane.steps.decided ? "" : lane.interrupted ? "interrupted: another process answers" : lane.listed ? "no outcome known" : "running";
  if (lane.forgotten && ["decided", "message"].includes(part)) return "not known";
  if (part === "decided") {
    if (!lane.steps.stored) return lane.listed ? "not known" : lane.steps.local ? "open" : "";
    if (lane.lastCheck && !lane.steps.decided) return `asked: ${lane.lastCheck.answer}`;
    return lane.interrupted ? "waits for the check-back" : "open";
  }
  return "";
}

/** What became of it so far, for who cannot see the lane. */
export function inWords(lane) {
  const steps = PARTS.map(([part, label]) => lane.steps[part] && `${label}: ${lane.steps[part].text}`);
  return `Order ${short(lane.order)}. ${steps.filter(Boolean).join(". ")}.`;
}

/**
 * When a step was. A message was delivered at the latest when stock-svc acted on it, which can be before
 * order-svc hears that its topic has it.
 */
function timed(lane, part) {
  const { at, text } = lane.steps[part];
  if (part !== "message" || text !== "delivered" || !at || !lane.acted) return at;
  return Date.parse(lane.acted) < Date.parse(at) ? lane.acted : at;
}

/** The words for that; a delivery of an unknown time says so, what has no time of its own says nothing. */
function timeWords(lane, part, start) {
  const at = timed(lane, part);
  if (!at) return part === "message" && lane.steps[part].text === "delivered" ? "time not known" : "";
  const after = Date.parse(at) - start;
  return part === "stored" || Number.isNaN(after) ? timeOf(at) : `+${millis(Math.max(0, after))}`;
}

/** The lane as an element. `act(name)` is called for its buttons. */
export function render(lane, placed, act) {
  const start = Date.parse(lane.steps.stored?.at ?? "");
  const cells = PARTS.map(([part, label]) => {
    const step = lane.steps[part];
    const count = part === "decided" ? checkCount(lane.checks) : 0;
    const checks = count > 0 ? h("span", { class: "why" }, `${count} check${count > 1 ? "s" : ""}`) : null;
    if (!step) {
      const text = waiting(lane, part);
      return h("div", { class: `step${text ? "" : " rest"}`, "data-step": part },
        h("span", { class: "label" }, label), text ? h("span", { class: "tag" }, text) : "", checks);
    }
    const at = timeWords(lane, part, start);
    return h("div", { class: "step", "data-step": part },
      h("span", { class: "label" }, label),
      h("span", { class: `tag ${step.tone}` }, step.text),
      step.why ? h("span", { class: "why" }, step.why) : null,
      checks,
      at ? h("span", { class: "at", title: timed(lane, part) ?? "" }, at) : null);
  });
  // Everything is there from the beginning, shown or not: what comes later must not replace the button that has the focus.
  const what = (lane.items ?? []).map((item) => `${item.quantity} ${item.sku}`).join(", ");
  const canCancel = lane.purpose !== CANCEL && ["confirmed", "pending_stock"].includes(lane.status);
  const first = h("div", { class: "step", "data-step": "order" },
    h("span", { class: "label" }, "Order"),
    h("span", {}, h("span", { class: "who" }, lane.user ?? "order"), " ", h("span", { class: "mono", title: lane.order ?? "" }, short(lane.order ?? lane.transaction))),
    h("span", { class: "why", hidden: !what }, what),
    h("span", { class: "why", hidden: !placed?.fault }, `failure: ${placed?.fault ?? "none"}`),
    h("span", { class: "acts" },
      h("button", { type: "button", onclick: () => act("show") }, "Life"),
      h("button", { type: "button", hidden: !canCancel, onclick: () => act("cancel") }, "Cancel order")));
  return h("li", { class: `lane${placed ? " placed" : ""}`, "data-tx": lane.transaction, "data-order": lane.order ?? "" }, first, ...cells);
}
