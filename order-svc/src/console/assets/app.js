// Puts the parts together: events go to whoever shows them, changes make lists look again.

import { ask } from "./api.js";
import * as dialog from "./dialog.js";
import { byId, h, say, short } from "./dom.js";
import { watch } from "./events.js";
import * as halves from "./halves.js";
import * as lanes from "./lanes.js";
import * as letters from "./letters.js";
import * as metrics from "./metrics.js";
import * as order from "./order.js";
import * as stock from "./stock.js";

function cancel(lane) {
  dialog.open({
    title: `Cancel order ${short(lane.order)}`,
    body: [h("p", {}, "Its stock is restored by the half message that goes with the cancellation.")],
    ok: "Cancel the order",
    fields: [],
    run: async () => {
      await ask(`/orders/${lane.order}/cancel`, { method: "POST" });
      stock.touch();
    },
  });
}

function show(lane) {
  dialog.showHalf(lane.transaction).catch((error) => dialog.open({ title: "Its life cannot be read", body: [h("p", {}, error.message)] }));
}

function changed() {
  stock.touch();
  halves.touch();
}

function heard(name, data) {
  if (name === "hello" || name === "reset") {
    order.allowFaults(data.faults);
    lanes.reload(data.reason === "other_process").catch((error) => console.info("lanes:", error.message));
    changed();
    return;
  }
  lanes.event(name, data);
  metrics.event(name, data);
  if (name !== "checked") changed();
}

dialog.start();
order.start(lanes.placedHere);
lanes.start({ show, cancel, settled: stock.touch });
stock.start(order.offer);
halves.start();
letters.start();
metrics.start();
watch(heard, (state, text) => {
  say(byId("connection"), text, state);
  // The books must not look right when nobody can read them.
  if (state === "lost") stock.touch();
});
