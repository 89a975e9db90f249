// Dead letters of stock-svc: why it gave up, and another try.

import { ask } from "./api.js";
import { open } from "./dialog.js";
import { byId, h, patchRows, say, short, timeOf } from "./dom.js";

const PAGE = 20;
const EVERY_MS = 10_000;

let cursor = null;
let next = null;

export function start() {
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
  setInterval(() => document.hidden || load(), EVERY_MS);
}

async function load() {
  const body = byId("letters").tBodies[0];
  const message = (text, kind) => body.replaceChildren(h("tr", {}, h("td", { colspan: 6, class: kind }, text)));
  try {
    const page = await ask(`/api/dead-letters?state=open&limit=${PAGE}${cursor ? `&cursor=${cursor}` : ""}`);
    next = page.next_cursor;
    if (page.items.length) patchRows(body, page.items.map(row));
    else message("There are none: every delivered message was consumed.", "empty");
    byId("letters-next").disabled = !next;
    byId("letters-back").disabled = cursor === null;
    say(byId("letters-page"), page.items.length ? `${page.items.length} shown${next ? ", there are more" : ""}` : "");
  } catch (error) {
    message(`The dead letters cannot be read: ${error.message}`, "empty problem");
  }
}

function row(letter) {
  const name = letter.transaction_id ?? letter.message_key;
  return h("tr", { "data-row": letter.id },
    h("td", { class: "mono", title: name }, short(name)), h("td", {}, letter.topic), h("td", { class: "text" }, letter.cause),
    h("td", {}, String(letter.attempts)), h("td", {}, timeOf(letter.last_failed_at)),
    h("td", { class: "acts" }, h("button", { type: "button", "aria-label": `Replay ${short(name)}`, onclick: () => replay(letter, name) }, "Replay")));
}

function replay(letter, name) {
  const facts = [["Message", name], ["Place", `${letter.topic}, partition ${letter.partition}, offset ${letter.offset}`], ["Cause", letter.cause]];
  open({
    title: "Replay: hand the message to its consumer again",
    body: [h("dl", {}, facts.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)])), h("p", {}, "It has its effect once, however often it is replayed.")],
    ok: "Replay",
    run: async () => {
      await ask(`/api/dead-letters/${letter.id}/replay`, { method: "POST", trusted: true });
      load();
    },
  });
}
