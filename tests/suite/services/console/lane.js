// Holds the lanes' own logic against what the services may say, in the page; returns what is wrong.
return import("/console/lane.js").then(({ apply, applyHalf, applyMovements, awaitsStock, newLane, render }) => {
  const wrong = [];
  const is = (what, seen, wanted) => seen === wanted || wrong.push(`${what}: ${seen}, not ${wanted}`);
  const at = (second) => new Date(Date.UTC(2026, 0, 1, 0, 0, second)).toISOString();
  const half = (state, attempts, history) => ({ key: "an order", purpose: "order.rollback", state, attempts, partition: 0, offset: 1, stored_at: at(0), last_outcome: null, history });
  const text = (lane, part) => render(lane, null, () => {}).querySelector(`[data-step=${part}]`).textContent;
  const counts = (lane) => /\d+ checks?/.exec(text(lane, "decided"))?.[0];
  const checked = (second, answer = "unknown") => ({ answer, reason: "", at: at(second) });
  const record = (second, event, detail = "") => ({ event, at: at(second), detail });

  // A COMMIT that was read delivers nothing yet; the event does, and so does what stock-svc did.
  for (const [purpose, kind] of [["order.rollback", "restore"], ["order.created", "deduct"]]) {
    const lane = newLane("a");
    applyHalf(lane, { ...half("committed", 0, [record(1, "committed", "by producer")]), purpose });
    is("committed", lane.steps.message.text, "committed");
    is("stock is awaited", awaitsStock(lane), true);
    applyMovements(lane, []);
    is("nothing was done", lane.steps.message.text, "committed");
    applyMovements(lane, [{ kind, quantity: 1, sku: "apple", created_at: at(2) }]);
    is(`delivered by ${kind}`, lane.steps.message.text, "delivered");
  }
  const told = newLane("b");
  applyHalf(told, half("committed", 0, []));
  apply(told, "delivered", { topic: "t", at: at(3) });
  is("delivered by its event", told.steps.message.text, "delivered");
  // The next owner of a partition tells a delivery again, and cannot know when it was.
  const time = (lane, part) => { const shown = render(lane, null, () => {}).querySelector(`[data-step=${part}] .at`); return shown && `${shown.textContent}|${shown.title}`; };
  const begun = () => { const lane = newLane("e"); apply(lane, "half_stored", { purpose: "order.rollback", partition: 0, offset: 1, at: at(0) }); apply(lane, "decided", { verdict: "commit", by: "producer", reason: "", at: at(1) }); return lane; };
  const restored = [{ kind: "restore", quantity: 1, sku: "apple", created_at: at(3) }];
  const again = begun();
  apply(again, "delivered", { topic: "t", at: null });
  is("a time that nobody knows", time(again, "message"), "time not known|");
  applyMovements(again, restored);
  is("nor when it was restored", time(again, "message"), "time not known|");
  is("restored then", time(again, "stock"), `+3.0 s|${at(3)}`);
  const live = begun();
  apply(live, "delivered", { topic: "t", at: at(2) });
  is("delivered then", time(live, "message"), `+2.0 s|${at(2)}`);
  apply(live, "decided", { verdict: "commit", by: "producer", reason: "", at: at(60) });
  apply(live, "delivered", { topic: "t", at: null });
  applyMovements(live, restored);
  is("told again, it keeps its time", time(live, "message"), `+2.0 s|${at(2)}`);
  is("and its decision's", time(live, "decided"), `+1.0 s|${at(1)}`);
  const quick = begun();
  apply(quick, "delivered", { topic: "t", at: at(4) });
  applyMovements(quick, restored);
  is("at the latest when somebody acted on it", time(quick, "message"), `+3.0 s|${at(3)}`);
  // An answer that came before its event: the event knows the time.
  const late = begun();
  applyHalf(late, half("committed", 0, []));
  applyMovements(late, restored);
  is("delivered by what was done", time(late, "message"), "time not known|");
  apply(late, "delivered", { topic: "t", at: at(2) });
  is("its event came later", time(late, "message"), `+2.0 s|${at(2)}`);

  // What was missed has its time from the store: dropped by its decision, parked by its record.
  const dropped = newLane("f");
  applyHalf(dropped, half("rolled_back", 0, [record(2, "rolled_back", "by producer")]));
  is("dropped then", time(dropped, "message"), `+2.0 s|${at(2)}`);
  const parked = newLane("g");
  applyHalf(parked, half("parked", 0));
  is("the list does not say when it was parked", time(parked, "message"), null);
  applyHalf(parked, half("parked", 0, [record(4, "parked", "max_checks")]));
  is("parked then", time(parked, "message"), `+4.0 s|${at(4)}`);

  const refused = newLane("c");
  applyHalf(refused, half("committed", 0, []));
  applyHalf(refused, half("parked", 0, [record(4, "parked", "undeliverable")]));
  is("refused by its topic", refused.steps.message.text, "parked");

  // Checks are counted once: told again, told by the store, by both, and in another life.
  const lane = newLane("d");
  apply(lane, "half_stored", { purpose: "order.rollback", partition: 0, offset: 1, at: at(0) });
  for (const round of [1, 2]) for (const second of [10, 20]) apply(lane, "checked", checked(second));
  is("told twice", counts(lane), "2 checks");
  apply(lane, "checked", checked(25, "failed"));
  is("a failed one is no attempt", counts(lane), "2 checks");
  // Another replica made one at 30, of which this page heard nothing.
  applyHalf(lane, half("open", 3, [record(10, "checked"), record(20, "checked"), record(30, "checked")]));
  is("with the other replica's", counts(lane), "3 checks");
  for (const second of [10, 20, 40]) apply(lane, "checked", checked(second));
  is("a later one comes on top", counts(lane), "4 checks");
  apply(lane, "reopened", { operator: "olga", reason: "", at: at(50) });
  is("another life", counts(lane), undefined);
  for (const second of [10, 20, 40, 60]) apply(lane, "checked", checked(second));
  is("of this life", counts(lane), "1 check");
  applyHalf(lane, half("committed", 0, [record(50, "reopened"), record(61, "committed", "offset 9, by check-back")]));
  is("the one that decided", counts(lane), "1 check");
  return wrong;
});
