// Dead letters of both services: why one gave up, another try, or the end of it. Those of stock-svc come by
// way of this service, because the page asks nothing of another origin.

import { ask } from "./api.js";
import { open, showRead } from "./dialog.js";
import { byId, h, patchRows, say, short, timeOf } from "./dom.js";

const PAGE = 20;
const EVERY_MS = 10_000;

const PLACES = { stock: "/api/dead-letters", order: "/dead-letters" };

let service = "stock";
let cursor = null;
let next = null;
let number = 0;
let asking = 0; // questions without an answer yet
let latest = new Map(); // by id: what a row's buttons are about

export function start() {
  for (const name of Object.keys(PLACES)) byId(`letters-${name}`).addEventListener("click", () => turn(name));
  byId("letters-refresh").addEventListener("click", load);
  byId("letters-next").addEventListener("click", () => {
    cursor = next;
    load();
  });
  byId("letters-back").addEventListener("click", () => {
    cursor = null;
    load();
  });
  load();
  // A look that nobody asked for waits for the one before, or slow answers would never be shown.
  setInterval(() => document.hidden || asking > 0 || load(), EVERY_MS);
}

function turn(to) {
  [service, cursor, next] = [to, null, null];
  for (const name of Object.keys(PLACES)) byId(`letters-${name}`).setAttribute("aria-pressed", String(name === service));
  load();
}

async function load() {
  const [own, owner] = [++number, service];
  asking += 1;
  const body = byId("letters").tBodies[0];
  const message = (text, kind) => body.replaceChildren(h("tr", {}, h("td", { colspan: 6, class: kind }, text)));
  try {
    const [page, queued] = await Promise.all([
      ask(`${PLACES[owner]}?state=open&limit=${PAGE}${cursor ? `&cursor=${cursor}` : ""}`),
      ask(`${PLACES[owner]}?state=queued&limit=${PAGE}`),
    ]);
    // An answer that was overtaken by a later question is dropped.
    if (own !== number) return;
    // Those of a page further on may have been settled meanwhile.
    if (page.items.length === 0 && cursor !== null) {
      cursor = null;
      load();
      return;
    }
    next = page.next_cursor;
    latest = new Map(page.items.map((letter) => [letter.id, letter]));
    const waiting = queued.items.length === 0 ? "" : `${queued.items.length}${queued.next_cursor ? " and more" : ""} queued for a replay`;
    if (page.items.length) patchRows(body, page.items.map((letter) => row(letter, owner)));
    else message(waiting ? "None is open." : "There are none: every delivered message was consumed.", "empty");
    byId("letters-next").disabled = !next;
    byId("letters-back").disabled = cursor === null;
    say(byId("letters-page"), [page.items.length ? `${page.items.length} shown${next ? ", there are more" : ""}` : "", waiting].filter(Boolean).join("; "));
  } catch (error) {
    if (own !== number) return;
    const text = `The dead letters cannot be read: ${error.message}`;
    message(text, "empty problem");
    say(byId("letters-page"), text);
  } finally {
    asking -= 1;
  }
}

function row(letter, owner) {
  const name = nameOf(letter);
  const button = (key, text, onclick) => h("button", { type: "button", "data-key": `${letter.id}-${key}`, "aria-label": `${text}: ${shortName(letter)}`, onclick }, text);
  return h("tr", { "data-row": letter.id },
    h("td", { class: "mono", title: name }, shortName(letter)), h("td", {}, letter.topic), h("td", { class: "text" }, letter.cause),
    h("td", {}, String(letter.attempts)), h("td", {}, timeOf(letter.last_failed_at)),
    h("td", { class: "acts" },
      button("show", "Details", () => show(letter, owner)),
      button("replay", "Replay", () => replay(latest.get(letter.id) ?? letter, owner)), button("discard", "Discard", () => discard(latest.get(letter.id) ?? letter, owner))));
}

const nameOf = (letter) => letter.transaction_id ?? letter.message_key;
// What is not ours has no name but its place; its topic stands beside it.
const shortName = (letter) => (letter.transaction_id ? short(letter.transaction_id) : `${letter.partition}@${letter.offset}`);

function facts(letter) {
  const all = [
    ["Message", nameOf(letter)], ["Place", `${letter.topic}, partition ${letter.partition}, offset ${letter.offset}`], ["Cause", letter.cause],
    ["Attempts", `${letter.attempts}, from ${timeOf(letter.first_failed_at)} to ${timeOf(letter.last_failed_at)}`],
  ];
  return h("dl", {}, all.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]));
}

/** With its payload if this tab has the operator's token. */
function show(letter, owner) {
  return showRead(`${PLACES[owner]}/${letter.id}`, (read) => {
    const payload = read.payload == null ? h("p", { class: "note" }, "The payload shows once this tab has the operator's token.") : h("pre", { class: "mono", tabindex: 0 }, String(read.payload));
    return { title: `A message that ${owner}-svc gave up on`, body: [facts(read), payload] };
  });
}

function replay(letter, owner) {
  open({
    title: "Replay: hand the message to its consumer again",
    body: [facts(letter), h("p", {}, "It has its effect once, however often it is replayed.")],
    ok: "Replay",
    fields: ["token"],
    run: async () => {
      try {
        await ask(`${PLACES[owner]}/${letter.id}/replay`, { method: "POST", trusted: true });
      } finally {
        load(); // One more attempt is counted also when it fails again.
      }
    },
  });
}

function discard(letter, owner) {
  open({
    title: "Discard: it never has its effect",
    body: [facts(letter), h("p", {}, "It stays in the list of discarded ones, with the reason, and cannot be replayed any more.")],
    ok: "Discard",
    fields: ["reason", "operator", "token"],
    most: { reason: 500, operator: 100 },
    run: async ({ reason, operator }) => {
      await ask(`${PLACES[owner]}/${letter.id}/discard`, { method: "POST", body: { reason, operator }, trusted: true });
      load();
    },
  });
}
