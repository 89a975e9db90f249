// The charts: counters of the replica that answers /metrics, and times between events.

import { bars, lines } from "./charts.js";
import { byId, h, millis } from "./dom.js";

const EVERY_MS = 2_000;
const POINTS = 60;
const KEPT_TIMES = 200;
const RECENT_MS = 10_000; // an earlier reading says nothing of the rate of now

const rates = { stored: [], delivered: [], dropped: [] };
const COUNTERS = { stored: "halfmsg_prepared_total", delivered: "halfmsg_delivered_total", dropped: "halfmsg_dropped_total" };
const times = { decided: [], delivered: [] };
const stored = new Map(); // by transaction: when, and which of the times it has
const CHARTS = ["chart-rate", "chart-decisions", "chart-checks", "chart-latency"];
const readings = new Map(); // by process: its last counts, and when; behind one address may be several

export function start() {
  load();
  setInterval(() => document.hidden || load(), EVERY_MS);
}

/** Times from the half message to its decision and to its delivery. What the next owner of a partition tells
 * again does not count again. */
export function event(name, data) {
  if (name === "half_stored") {
    if (!stored.has(data.transaction_id)) stored.set(data.transaction_id, { at: Date.parse(data.at), has: new Set() });
    if (stored.size > KEPT_TIMES * 5) stored.delete(stored.keys().next().value);
    return;
  }
  const list = times[name];
  const since = stored.get(data.transaction_id);
  // A delivery that the next owner of a partition tells of has no time: nobody knows it.
  if (!list || !since || !data.at || since.has.has(name)) return;
  since.has.add(name);
  list.push(Math.max(0, Date.parse(data.at) - since.at));
  if (list.length > KEPT_TIMES) list.shift();
}

async function load() {
  try {
    const answer = await fetch("/metrics", { signal: AbortSignal.timeout(EVERY_MS), cache: "no-store" });
    if (!answer.ok) throw new Error(`answered ${answer.status}`);
    draw(parse(await answer.text()));
  } catch (error) {
    console.info("metrics:", error.message);
    unread();
  }
}

/** What was drawn before must not look like what is; the charts go on when they can be read again. */
function unread() {
  readings.clear();
  for (const id of CHARTS) byId(id).replaceChildren(h("p", { class: "empty problem" }, "Cannot be read now."));
}

/** [{name, labels, value}] of the text format. */
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{(.*)\})? ([^ ]+)/.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/([a-z_]+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

function draw(samples) {
  const sum = (name) => samples.filter((sample) => sample.name === name).reduce((total, { value }) => total + value, 0);
  const now = performance.now();
  const boot = samples.find(({ name }) => name === "halfmsg_process_info")?.labels.boot;
  for (const [known, { at }] of readings) if (now - at > RECENT_MS) readings.delete(known);
  const before = readings.get(boot);
  const counts = Object.fromEntries(Object.entries(COUNTERS).map(([name, metric]) => [name, sum(metric)]));
  for (const [name, points] of Object.entries(rates)) {
    const passed = before ? (now - before.at) / 1000 : 0;
    // The first reading of a process has no rate; the chart stands still.
    if (passed) points.push(Math.max(0, (counts[name] - before.counts[name]) / passed));
    else if (points.length === 0) points.push(0);
    if (points.length > POINTS) points.shift();
  }
  readings.set(boot, { at: now, counts });
  lines(byId("chart-rate"), Object.entries(rates).map(([name, points]) => ({ name, points, text: points.at(-1).toFixed(1) })));
  const of = (metric, name) => samples.filter((sample) => sample.name === metric).map(({ labels, value }) => [name(labels), value]).sort(([a], [b]) => a.localeCompare(b));
  bars(byId("chart-decisions"), of("halfmsg_decisions_total", ({ origin, verdict }) => `${verdict} by ${origin}`), "No decision yet.");
  bars(byId("chart-checks"), of("halfmsg_checks_total", ({ outcome }) => outcome.replace("_", " ")), "Nobody had to be asked yet.");
  const quantiles = Object.entries(times).filter(([, list]) => list.length).flatMap(([name, list]) => {
    const sorted = list.toSorted((a, b) => a - b);
    const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
    return [[`${name}, median`, at(0.5), millis(at(0.5))], [`${name}, 95th percentile`, at(0.95), millis(at(0.95))]];
  });
  bars(byId("chart-latency"), quantiles, "No half message was decided while this page watched.");
}
