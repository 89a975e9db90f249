// Two half messages of which this page hears without having seen them begin.
// `window.asked()` counts the questions about either: the first is one that nobody knows any more, the second is still
// open. By a clock that runs ahead with each question. `window.hear()` tells something of the first.
return import("/console/lanes.js").then((lanes) => {
  const [forgotten, open] = [crypto.randomUUID(), crypto.randomUUID()];
  const asked = { [forgotten]: 0, [open]: 0 };
  const [real, now] = [window.fetch, Date.now];
  let ahead = 60_000;
  Date.now = () => now() + ahead;
  const about = (id) => ({ transaction_id: id, order_id: null, at: new Date().toISOString() });
  const half = { transaction_id: open, key: null, purpose: "order.rollback", state: "open", attempts: 0, partition: 0, offset: 1, stored_at: new Date().toISOString(), last_outcome: null, history: [] };
  window.fetch = (path, how) => {
    const id = path.slice("/halves/".length);
    if (!(id in asked)) return real(path, how);
    asked[id] += 1;
    ahead += 31_000;
    return id === open ? Promise.resolve(new Response(JSON.stringify(half))) : real(path, how);
  };
  window.asked = () => [asked[forgotten], asked[open]];
  window.hear = () => lanes.event("checked", { ...about(forgotten), answer: "unknown", reason: "" });
  lanes.event("half_stored", { ...about(open), purpose: "order.rollback", partition: 0, offset: 1 });
  lanes.event("decided", { ...about(forgotten), verdict: "commit", by: "producer", operator: null, reason: "" });
});
