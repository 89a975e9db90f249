// One lane: what is known of one half message and its order, and how that is shown. Pure: events go
// in, elements come out.

import { h, millis, short, timeOf } from "./dom.js";

/** The purpose of half messages that tell stock-svc of an order; all others restore stock. */
const CREATED = "order.created";
/** What stock-svc has done when nothing more is to come. */
const ENDS = ["restored", "nothing to restore", "sold", "untouched", "refused"];

/** The parts of a lane, in their order; each is null or {text, tone, at, why}. */
const PARTS = [
  ["stored", "Half message"],
  ["local", "Local transaction"],
  ["decided", "Decision"],
  ["message", "Message"],
  ["stock", "Stock"],
];

export function newLane(transaction) {
  return { transaction, order: null, status: null, purpose: null, user: null, items: null, checks: 0, lastCheck: null, seen: Date.now(), interrupted: false, listed: false, steps: {} };
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
      lane.status = event.status;
      steps.local = orderStep(event.status, at, event.reason);
      // What was sold comes back.
      if (event.status === "cancelled") delete steps.stock;
      return true;
    case "checked":
      lane.checks += 1;
      lane.lastCheck = { answer: event.answer, at, reason: event.reason };
      return true;
    case "decided":
      // A restarted owner reads again what its progress does not cover.
      if (steps.decided) return false;
      steps.decided = { text: event.verdict === "commit" ? "deliver" : "drop", tone: "info", at, why: by(event.by, event.operator) + (event.reason ? `: ${event.reason}` : "") };
      return true;
    case "delivered":
      if (steps.message?.text === "delivered") return false;
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
      steps.local ??= null;
      return true;
    default:
      return false;
  }
}

function orderStep(status, at, reason) {
  const tone = { confirmed: "good", pending_stock: "info", void: "warn", rejected: "warn", cancelled: "warn" }[status] ?? "info";
  return { text: `order ${status.replace("_", " ")}`, tone, at, why: reason ?? null };
}

/** What GET /orders/{id} says. */
export function applyOrder(lane, order) {
  lane.order = order.id;
  lane.user = order.user_id;
  lane.items = order.items;
  if (lane.status === order.status && lane.steps.local) return;
  lane.status = order.status;
  lane.steps.local = orderStep(order.status, order.updated_at, order.reason);
}

/** What GET /halves and GET /halves/{id} say, for what was missed: events are more exact, so they stay. */
export function applyHalf(lane, half) {
  lane.order ??= half.key;
  lane.purpose ??= half.purpose;
  const step = (event) => half.history?.findLast((entry) => entry.event === event);
  lane.steps.stored ??= { text: "stored", tone: "info", at: half.stored_at, why: `partition ${half.partition}, offset ${half.offset}` };
  lane.checks = Math.max(lane.checks, half.attempts);
  if (half.state === "parked") {
    lane.steps.message ??= { text: "parked", tone: "bad", at: step("parked")?.at, why: half.last_outcome };
  }
  const closed = { committed: ["deliver", "delivered", "info"], rolled_back: ["drop", "dropped", "good"] }[half.state];
  if (!closed) return;
  const decision = step(half.state);
  const who = /\bby ([a-z-]+(?: [^:]+)?)/.exec(decision?.detail ?? half.last_outcome ?? "");
  lane.steps.decided ??= { text: closed[0], tone: "info", at: decision?.at, why: who ? `by ${who[1]}` : null };
  if (!lane.steps.message || lane.steps.message.text === "parked") {
    lane.steps.message = { text: closed[1], tone: closed[2], at: null, why: null };
  }
}

/** What stock-svc's movements say of the order. */
export function applyMovements(lane, movements) {
  const of = (kind) => movements.filter((movement) => movement.kind === kind);
  const words = (list) => list.map((movement) => `${movement.quantity} ${movement.sku}`).join(", ");
  const [restored, voided, deducted] = [of("restore"), of("void"), of("deduct")];
  const sold = lane.status !== "cancelled";
  if (restored.length) lane.steps.stock = { text: "restored", tone: "good", at: restored.at(-1).created_at, why: words(restored) };
  else if (voided.length) lane.steps.stock = { text: "nothing to restore", tone: "good", at: voided[0].created_at };
  else if (lane.status === "rejected") lane.steps.stock = { text: "refused", tone: "warn", at: null };
  else if (deducted.length && sold && lane.purpose === CREATED) lane.steps.stock = { text: "sold", tone: "good", at: deducted.at(-1).created_at, why: words(deducted) };
  else if (sold && lane.steps.message?.text === "dropped") {
    lane.steps.stock = deducted.length
      ? { text: "sold", tone: "good", at: deducted.at(-1).created_at, why: words(deducted) }
      : { text: "untouched", tone: "good", at: null };
  } else if (deducted.length) lane.steps.stock = { text: "deducted", tone: "info", at: deducted.at(-1).created_at, why: words(deducted) };
}

/** Whether stock-svc has still to do something for it. */
export const awaitsStock = (lane) =>
  lane.order !== null && ["delivered", "dropped"].includes(lane.steps.message?.text)
  && !ENDS.includes(lane.steps.stock?.text);

function waiting(lane, part) {
  if (part === "local") return lane.steps.decided ? "" : lane.interrupted ? "interrupted: the service died" : lane.listed ? "no outcome known" : "running";
  if (part === "decided") {
    if (!lane.steps.stored && !lane.steps.local) return "";
    if (lane.lastCheck && !lane.steps.decided) return `asked: ${lane.lastCheck.answer}`;
    return lane.interrupted ? "waits for the check-back" : "open";
  }
  return "";
}

/** The lane as an element. `act(name)` is called for its buttons. */
export function render(lane, placed, act) {
  const start = Date.parse(lane.steps.stored?.at ?? "");
  const cells = PARTS.map(([part, label]) => {
    const step = lane.steps[part];
    if (!step) {
      const text = waiting(lane, part);
      return h("div", { class: `step${text ? "" : " rest"}`, "data-step": part },
        h("span", { class: "label" }, label), text ? h("span", { class: "tag" }, text) : "");
    }
    const after = Date.parse(step.at ?? "") - start;
    const at = part === "stored" || Number.isNaN(after) ? timeOf(step.at) : `+${millis(Math.max(0, after))}`;
    const checks = part === "decided" && lane.checks > 0 ? `${lane.checks} check${lane.checks > 1 ? "s" : ""}` : null;
    return h("div", { class: "step", "data-step": part },
      h("span", { class: "label" }, label),
      h("span", { class: `tag ${step.tone}` }, step.text),
      step.why ? h("span", { class: "why" }, step.why) : null,
      checks ? h("span", { class: "why" }, checks) : null,
      at ? h("span", { class: "at", title: step.at }, at) : null);
  });
  const what = (lane.items ?? []).map((item) => `${item.quantity} ${item.sku}`).join(", ");
  const first = h("div", { class: "step", "data-step": "order" },
    h("span", { class: "label" }, "Order"),
    h("span", {}, h("span", { class: "who" }, lane.user ?? "order"), " ", h("span", { class: "mono", title: lane.order ?? "" }, short(lane.order ?? lane.transaction))),
    what ? h("span", { class: "why" }, what) : null,
    placed?.fault ? h("span", { class: "why" }, `failure: ${placed.fault}`) : null,
    h("span", { class: "acts" },
      h("button", { type: "button", onclick: () => act("show") }, "Life"),
      ["confirmed", "pending_stock"].includes(lane.status) ? h("button", { type: "button", onclick: () => act("cancel") }, "Cancel order") : null));
  return h("li", { class: `lane${placed ? " placed" : ""}`, "data-tx": lane.transaction, "data-order": lane.order ?? "" }, first, ...cells);
}
