// Holds the lanes of one order against what the service may say while it is cancelled; returns what is wrong.
return import("/console/lanes.js").then(async (lanes) => {
  const wrong = [];
  const is = (what, seen, wanted) => seen === wanted || wrong.push(`${what}: ${seen}, not ${wanted}`);
  const until = async (what, look) => {
    for (let left = 600; !look(); left -= 1) {
      if (left === 0) return wrong.push(`${what}: never`);
      await new Promise((go) => setTimeout(go, 100));
    }
  };
  const [order, first, cancellation] = [crypto.randomUUID(), crypto.randomUUID(), crypto.randomUUID()];
  const at = () => new Date().toISOString();
  const local = (id) => document.querySelector(`[data-tx="${id}"] [data-step=local]`)?.innerText ?? "";
  const offersCancel = (id) => [...document.querySelectorAll(`[data-tx="${id}"] button`)].some((one) => one.textContent === "Cancel order" && one.checkVisibility());

  let asked = 0;
  const stored = { id: order, user_id: "ann", items: [{ sku: "apple", quantity: 1 }], status: "confirmed", reason: null, updated_at: at() };
  const real = window.fetch;
  window.fetch = (path, how) => {
    if (path !== `/orders/${order}`) return real(path, how);
    asked += 1;
    return Promise.resolve(new Response(JSON.stringify(stored)));
  };
  lanes.event("half_stored", { transaction_id: first, order_id: order, purpose: "order.rollback", partition: 0, offset: 1, at: at() });
  lanes.event("order", { transaction_id: first, order_id: order, status: "confirmed", reason: null, at: at() });
  await until("the order stands", () => local(first).includes("order confirmed"));
  is("it can be cancelled", offersCancel(first), true);

  // The cancellation's own lane asks for the order before its local transaction is committed.
  lanes.event("half_stored", { transaction_id: cancellation, order_id: order, purpose: "order.cancel", partition: 0, offset: 2, at: at() });
  await until("the order to be asked for", () => asked > 0);
  await until("its items", () => document.querySelector(`[data-tx="${cancellation}"]`)?.innerText.includes("1 apple"));
  is("what it has not done", local(cancellation).includes("order confirmed"), false);
  is("a cancellation can be cancelled", offersCancel(cancellation), false);
  // The event names the half message that the order began with.
  lanes.event("order", { transaction_id: first, order_id: order, status: "cancelled", reason: null, at: at() });
  await until("the order is cancelled", () => local(first).includes("order cancelled"));
  await until("so says its cancellation", () => local(cancellation).includes("order cancelled"));
  is("it can be cancelled again", offersCancel(first) || offersCancel(cancellation), false);

  // Another replica does it, and tells nothing here: once it is decided, the order is asked for until it says so.
  const [other, elsewhere] = [crypto.randomUUID(), crypto.randomUUID()];
  const late = { ...stored, id: other };
  window.fetch = (path, how) => (path === `/orders/${other}` ? Promise.resolve(new Response(JSON.stringify(late))) : real(path, how));
  lanes.event("half_stored", { transaction_id: elsewhere, order_id: other, purpose: "order.cancel", partition: 0, offset: 3, at: at() });
  await until("its items, too", () => document.querySelector(`[data-tx="${elsewhere}"]`)?.innerText.includes("1 apple"));
  Object.assign(late, { status: "cancelled", updated_at: at() });
  lanes.event("decided", { transaction_id: elsewhere, order_id: other, verdict: "commit", by: "producer", operator: null, reason: "", at: at() });
  await until("what was done elsewhere", () => local(elsewhere).includes("order cancelled"));
  window.fetch = real;
  return wrong;
});
