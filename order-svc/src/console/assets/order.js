// The order form.

import { ask } from "./api.js";
import { byId, h, say, short } from "./dom.js";

/** The failures that the service can induce, and what becomes of the order in either flow; no text: it cannot
 * happen in that flow, and the service refuses it. */
const FAULTS = [
  ["", "none", "The order is confirmed and its half message dropped.", "The order waits for the stock's answer."],
  ["price-lookup", "price-lookup", "The price lookup fails: nothing is deducted, the message is dropped.", "The price lookup fails: the order is void, without a half message."],
  ["deduct-refused", "deduct-refused", "The stock refuses: nothing is deducted, the message is dropped."],
  ["deduct-timeout", "deduct-timeout", "The stock deducts and its answer is lost: restored."],
  ["after-deduct", "after-deduct", "An error between deduction and order: the message brings the stock back."],
  ["order-insert", "order-insert", "The order cannot be stored: the message brings the stock back.", "The order cannot be stored: the message is dropped."],
  ["decision-lost", "decision-lost", "The order stands, its decision is lost: the check-back drops the message.", "The order stands, its decision is lost: the check-back delivers the message."],
  ["slow-local", "slow-local", "The local transaction stalls: the check-back is first and fences it."],
  ["crash-after-half", "crash-after-half", "The service dies before the deduction: the check-back settles it.", "The service dies before the order: the check-back drops the message."],
  ["crash-after-deduct", "crash-after-deduct", "The service dies after the deduction: the check-back brings the stock back."],
  ["crash-after-order", "crash-after-order", "The service dies after the order: the check-back drops the message.", "The service dies after the order: the check-back delivers the message."],
];
/** Where a flow's text stands. */
const TEXT_OF = { rollback: 2, saga: 3 };

const NOT_THERE = "Induced failures are switched off (HALFMSG_FAULTS).";

export function start(placed) {
  byId("fault").addEventListener("change", note);
  byId("flow").addEventListener("change", turn);
  turn();
  byId("order-form").addEventListener("submit", (event) => {
    event.preventDefault();
    place(placed);
  });
}

/** Whether the service obeys X-Fault. */
export function allowFaults(allowed) {
  const fault = byId("fault");
  if (fault.disabled === !allowed) return;
  fault.disabled = !allowed;
  if (!allowed) fault.value = "";
  note();
}

/** The products that can be ordered. */
export function offer(products) {
  const select = byId("sku");
  const known = [...select.options].map((option) => option.value).join();
  if (known === products.map((product) => product.sku).join()) return;
  const chosen = select.value;
  select.replaceChildren(...products.map(({ sku }) => h("option", { value: sku }, sku)));
  if (products.some(({ sku }) => sku === chosen)) select.value = chosen;
}

/** Offers the failures of the chosen flow; the chosen one stays if it can happen there. */
function turn() {
  const fault = byId("fault");
  const chosen = fault.value;
  const offered = FAULTS.filter((known) => known[TEXT_OF[byId("flow").value]]);
  fault.replaceChildren(...offered.map(([value, text]) => h("option", { value }, text)));
  fault.value = offered.some(([value]) => value === chosen) ? chosen : "";
  note();
}

function note() {
  const fault = byId("fault");
  const text = FAULTS.find(([value]) => value === fault.value)[TEXT_OF[byId("flow").value]];
  say(byId("fault-note"), fault.disabled ? NOT_THERE : text);
}

async function place(placed) {
  const [button, result] = [byId("place"), byId("order-result")];
  const what = { user: byId("user").value, sku: byId("sku").value, quantity: Number(byId("quantity").value), fault: byId("fault").value, at: Date.now() };
  const body = { user_id: what.user, items: [{ sku: what.sku, quantity: what.quantity }], flow: byId("flow").value };
  button.disabled = true;
  say(result, "placing…", "");
  try {
    const order = await ask("/orders", { method: "POST", body, headers: what.fault ? { "X-Fault": what.fault } : {} });
    placed(order.id, what);
    say(result, `${short(order.id)} is ${order.status.replace("_", " ")}.`, "good");
  } catch (problem) {
    const id = problem.body?.order_id;
    if (id || problem.status === 0) placed(id, what);
    const text = problem.status === 0 ? `${problem.message}: the order may not have reached the service. If it did, what became of it shows in its lane.` : `${problem.status}: ${problem.message}`;
    say(result, text, "bad");
  } finally {
    button.disabled = false;
  }
}
