// Where the focus is when what had it is drawn anew, hidden or removed; returns what is wrong.
return Promise.all([import("/console/lanes.js"), import("/console/dialog.js")]).then(async ([lanes, dialog]) => {
  const wrong = [];
  const name = () => {
    const at = document.activeElement;
    return `${at.tagName} ${at.id || at.textContent.slice(0, 20)} ${at.closest("[data-tx]")?.dataset.tx ?? ""}`.trim();
  };
  const is = (what, seen, wanted) => seen === wanted || wrong.push(`${what}: ${seen}, not ${wanted}`);
  const until = async (what, look) => {
    for (let left = 600; !look(); left -= 1) {
      if (left === 0) return wrong.push(`${what}: never; the focus is on ${name()}`);
      await new Promise((go) => setTimeout(go, 100));
    }
  };
  const order = crypto.randomUUID();
  const [first, at] = [crypto.randomUUID(), () => new Date().toISOString()];
  const stored = { id: order, user_id: "ann", items: [{ sku: "apple", quantity: 1 }], status: "pending_stock", reason: null, updated_at: new Date(0).toISOString() };
  let isThere = false;
  const real = window.fetch;
  window.fetch = (path, how) => (path === `/orders/${order}` ? Promise.resolve(isThere ? new Response(JSON.stringify(stored)) : new Response("{}", { status: 404 })) : real(path, how));
  const lane = () => document.querySelector(`[data-tx="${first}"]`);
  const button = (text) => [...lane().querySelectorAll("button")].find((one) => one.textContent === text && one.checkVisibility());
  const status = (status) => lanes.event("order", { transaction_id: first, order_id: order, status, reason: null, at: at() });
  const life = `BUTTON Life ${first}`;

  lanes.event("half_stored", { transaction_id: first, order_id: order, purpose: "order.created", partition: 0, offset: 1, at: at() });
  await until("the lane", lane);
  button("Life").focus();
  is("the focus", name(), life);
  status("confirmed");
  await until("a button beside it", () => button("Cancel order"));
  is("a button came beside it", name(), life);
  isThere = true;
  await until("the items", () => lane().innerText.includes("1 apple"));
  is("the items came above it", name(), life);

  // The button of who cancels is gone once it is cancelled.
  button("Cancel order")?.focus();
  status("cancelled");
  await until("no button to cancel", () => !button("Cancel order"));
  await until("the focus to be beside it", () => name() === life);

  // A dialog gives the focus back to what is left: beside it, or above it.
  status("confirmed");
  await until("the button again", () => button("Cancel order"));
  button("Cancel order")?.focus();
  dialog.open({ title: "a test", body: [], fields: [] });
  status("cancelled");
  await until("no button behind the dialog", () => !button("Cancel order"));
  document.getElementById("dialog").close();
  await until("the focus to be back beside it", () => name() === life);

  const row = document.getElementById("letters").tBodies[0].insertRow();
  const details = row.insertCell().appendChild(document.createElement("button"));
  details.textContent = "Details";
  details.focus();
  dialog.open({ title: "a test", body: [], fields: [] });
  row.remove();
  document.getElementById("dialog").close();
  await until("the focus to be at the head of its list", () => name() === "H2 letters-title");
  window.fetch = real;
  return wrong;
});
