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

function changed() {
  stock.touch();
  halves.touch();
}

function heard(name, data, former) {
  if (name === "hello" || name === "reset") {
    order.allowFaults(data.faults);
    // Who comes back to a stream that had ended in order has missed nothing.
    if (name === "hello" && former === "in order") return;
    lanes.reload(data.reason ?? null, former === "broken");
    changed();
    return;
  }
  lanes.event(name, data);
  metrics.event(name, data);
  if (name !== "checked") changed();
}

dialog.start();
order.start(lanes.placedHere);
lanes.start({ show: (lane) => dialog.showHalf(lane.transaction), cancel, settled: stock.touch });
stock.start(order.offer);
halves.start();
letters.start();
metrics.start();
watch(heard, (state, text) => {
  say(byId("connection"), text, state);
  // The books must not look right when nobody can read them.
  if (state === "lost") stock.touch();
});
