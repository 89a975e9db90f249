// Open and parked half messages, a page at a time, and what an operator does about them. A page has
// a fixed height and a bounded number of rows, so ten thousand of them move nothing.

import { ask } from "./api.js";
import { describe, open, showHalf } from "./dialog.js";
import { byId, h, patchRows, say, seconds, short, timeOf } from "./dom.js";

const PAGE = 50;
const EVERY_MS = 4_000;
const SOON_MS = 500;

const ACTIONS = {
  check: { ok: "Check now", title: "Ask the application now", text: "Its answer decides, as at any check-back.", force: false },
  commit: { ok: "Commit", title: "Commit: deliver the message", text: "The application is asked first; a contradiction is refused. The decision cannot be taken back.", force: true },
  rollback: { ok: "Roll back", title: "Roll back: drop the message", text: "The application is asked first; a contradiction is refused. The decision cannot be taken back.", force: true },
  resume: { ok: "Resume", title: "Resume: open it again", text: "The application is asked at once.", force: false },
};

const view = { state: "open", cursors: [null], next: null, number: 0 };
let soon = null;
let asking = 0; // questions without an answer yet
let again = false; // something has changed since the last one was asked
let latest = new Map(); // by transaction id: what a row's buttons are about

export function start() {
  for (const state of ["open", "parked"]) byId(`halves-${state}`).addEventListener("click", () => turn(state));
  byId("halves-refresh").addEventListener("click", load);
  byId("halves-next").addEventListener("click", () => {
    if (!view.next) return;
    view.cursors.push(view.next);
    view.next = null; // until the answer is there: a second click must not turn to the same page again
    load();
  });
  byId("halves-back").addEventListener("click", () => {
    if (view.cursors.length > 1) view.cursors.pop();
    load();
  });
  load();
  setInterval(() => document.hidden || look(), EVERY_MS);
}

/** Something has changed: look soon. */
export function touch() {
  soon ??= setTimeout(() => {
    soon = null;
    look();
  }, SOON_MS);
}

/** One question at a time: events that come faster than answers must not keep every answer from being shown. */
function look() {
  if (asking > 0) again = true;
  else load();
}

function turn(state) {
  Object.assign(view, { state, cursors: [null], next: null });
  for (const name of ["open", "parked"]) byId(`halves-${name}`).setAttribute("aria-pressed", String(name === state));
  load();
}

async function load() {
  const number = ++view.number;
  asking += 1;
  again = false;
  const cursor = view.cursors.at(-1);
  const path = `/halves?state=${view.state}&limit=${PAGE}${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`;
  try {
    const page = await ask(path);
    // An answer that was overtaken by a later question is dropped.
    if (number === view.number) show(page);
  } catch (error) {
    if (number === view.number) unlisted(`The half messages cannot be listed: ${error.message}`);
  } finally {
    asking -= 1;
    if (again && asking === 0) touch();
  }
}

function unlisted(text) {
  message(text, "empty problem");
  say(byId("halves-page"), text);
}

function message(text, kind) {
  byId("halves").tBodies[0].replaceChildren(h("tr", {}, h("td", { colspan: 7, class: kind }, text)));
}

function show({ items, next_cursor: next, missing_partitions: missing }) {
  view.next = next;
  const pages = view.cursors.length;
  if (items.length === 0 && pages > 1) {
    view.cursors.pop();
    load();
    return;
  }
  latest = new Map(items.map((half) => [half.transaction_id, half]));
  const empty = { open: "No half message is open: every local transaction is decided.", parked: "None is parked: nothing waits for an operator." };
  const unseen = missing.map((of) => `partition ${of.partition} ${of.stopped ? "stands still, and what lies behind is not shown" : "is not shown"}: ${of.reason}`).join("; ");
  if (items.length === 0 && unseen) message(`Not all half messages can be listed; ${unseen}.`, "empty problem");
  else if (items.length === 0) message(empty[view.state], "empty");
  else patchRows(byId("halves").tBodies[0], items.map(row));
  byId("halves-back").disabled = pages === 1;
  byId("halves-next").disabled = !next;
  const range = items.length ? `page ${pages}, ${(pages - 1) * PAGE + 1} to ${(pages - 1) * PAGE + items.length}${next ? ", there are more" : ""}` : "";
  say(byId("halves-page"), [range, unseen].filter(Boolean).join("; "));
}

function row(half) {
  const button = (key, text, onclick) => h("button", { type: "button", "data-key": `${half.transaction_id}-${key}`, "aria-label": `${text}: ${short(half.transaction_id)}`, onclick }, text);
  const verbs = half.state === "parked" ? ["resume", "commit", "rollback"] : ["check", "commit", "rollback"];
  return h("tr", { "data-row": `${half.transaction_id} ${half.state}` },
    h("td", { class: "mono", title: half.transaction_id }, short(half.transaction_id)),
    h("td", { class: "mono", title: half.key ?? "" }, short(half.key)),
    h("td", {}, seconds(half.age_seconds)), h("td", {}, String(half.attempts)),
    h("td", {}, half.next_check_at ? timeOf(half.next_check_at).replace(/[.,]\d+$/, "") : ""),
    h("td", { class: "text" }, half.last_outcome ?? ""),
    h("td", { class: "acts" }, button("show", "Details", () => showHalf(half.transaction_id)),
      verbs.map((verb) => button(verb, ACTIONS[verb].ok, () => settle(latest.get(half.transaction_id) ?? half, verb)))));
}

function settle(half, verb) {
  const { ok, title, text, force } = ACTIONS[verb];
  const run = async (request) => {
    await ask(`/halves/${half.transaction_id}/${verb}`, { method: "POST", body: request, trusted: true });
    load();
  };
  open({ title, body: [h("p", {}, text), ...describe(half)], ok, force, run });
}
