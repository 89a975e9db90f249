// The order form.

import { ask } from "./api.js";
import { byId, h, say, short } from "./dom.js";

/** The failures that the service can induce, and what becomes of the order. */
const FAULTS = [
  ["", "none", "The order is confirmed and its half message dropped."],
  ["price-lookup", "price-lookup", "The price lookup fails: nothing is deducted, the message is dropped."],
  ["deduct-refused", "deduct-refused", "The stock refuses: nothing is deducted, the message is dropped."],
  ["deduct-timeout", "deduct-timeout", "The stock deducts and its answer is lost: restored."],
  ["after-deduct", "after-deduct", "An error between deduction and order: the message brings the stock back."],
  ["order-insert", "order-insert", "The order cannot be stored: the message brings the stock back."],
  ["decision-lost", "decision-lost", "The order stands, its decision is lost: the check-back drops the message."],
  ["slow-local", "slow-local", "The local transaction stalls: the check-back is first and fences it."],
  ["crash-after-half", "crash-after-half", "The service dies before the deduction: the check-back settles it."],
  ["crash-after-deduct", "crash-after-deduct", "The service dies after the deduction: the check-back brings the stock back."],
  ["crash-after-order", "crash-after-order", "The service dies after the order: the check-back drops the message."],
];

const NOT_THERE = "Induced failures are switched off (HALFMSG_FAULTS).";

export function start(placed) {
  const fault = byId("fault");
  fault.append(...FAULTS.map(([value, text]) => h("option", { value }, text)));
  fault.addEventListener("change", note);
  byId("flow").addEventListener("change", note);
  note();
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

function note() {
  const fault = byId("fault");
  const [, , text] = FAULTS.find(([value]) => value === fault.value);
  const saga = byId("flow").value === "saga" && fault.value === "";
  say(byId("fault-note"), fault.disabled ? NOT_THERE : saga ? "The order waits for the stock's answer." : text);
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
    const text = problem.status === 0 ? `${problem.message}: what became of the order shows in its lane.` : `${problem.status}: ${problem.message}`;
    say(result, text, "bad");
  } finally {
    button.disabled = false;
  }
}
