// One dialog for everything that is shown in full or settled: it asks for reason, name and token,
// and stays open with the sentence that says why something was refused.

import { ask, token } from "./api.js";
import { byId, h, say, seconds, timeOf } from "./dom.js";

const NAME = "halfmsg-operator";

let work = null;
let opener = null; // where the focus was
let turn = 0; // whoever waited for an answer must not touch what was opened or closed meanwhile

export function start() {
  const dialog = byId("dialog");
  byId("dialog-cancel").addEventListener("click", () => dialog.close());
  byId("dialog-form").addEventListener("submit", (event) => {
    event.preventDefault();
    confirm();
  });
  dialog.addEventListener("close", () => {
    // A close is told late: another may be open by now.
    if (dialog.open) return;
    turn += 1;
    giveBack(opener);
  });
}

/** What has the focus, and what it stands in. */
function placeOf(element = document.activeElement ?? document.body) {
  return { element: element === document.body ? null : element, acts: element.closest(".acts"), section: element.closest("section") };
}

/** The focus goes back to where it was; if that was drawn anew, hidden or removed meanwhile, to what is next to it. */
function giveBack({ element, acts, section }) {
  const near = [element, ...(acts?.querySelectorAll("button") ?? []), section?.querySelector("h2"), byId("halves-title")];
  near.find((one) => one?.checkVisibility()).focus();
}

/** ok: the button's text, none if there is nothing to confirm. fields: what is asked for before, and
 * most: in how many characters. run({reason, operator, force}) does it. */
export function open({ title, body, ok, fields = ["reason", "operator", "token"], most = { reason: 1000, operator: 200 }, force = false, from = placeOf(), run }) {
  turn += 1;
  opener = from;
  work = run;
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...body);
  byId("dialog-fields").hidden = !ok || fields.length === 0;
  for (const field of byId("dialog-fields").querySelectorAll("[data-field]")) field.hidden = !fields.includes(field.dataset.field);
  for (const [field, limit] of Object.entries(most)) byId(`dialog-${field}`).maxLength = limit;
  byId("dialog-force-label").hidden = !force;
  byId("dialog-force").checked = false;
  byId("dialog-reason").value = "";
  byId("dialog-reason").required = Boolean(ok) && fields.includes("reason");
  byId("dialog-operator").value = sessionStorage.getItem(NAME) ?? "";
  byId("dialog-token").value = token.get();
  const button = byId("dialog-ok");
  button.hidden = !ok;
  button.disabled = false;
  button.textContent = ok ?? "";
  say(byId("dialog-error"), "");
  byId("dialog").showModal();
  if (ok && fields.length > 0) byId(`dialog-${fields[0]}`).focus();
}

async function confirm() {
  const [own, button] = [turn, byId("dialog-ok")];
  const title = byId("dialog-title").textContent;
  const [reason, operator] = [byId("dialog-reason").value.trim(), byId("dialog-operator").value.trim()];
  token.set(byId("dialog-token").value);
  sessionStorage.setItem(NAME, operator);
  if (byId("dialog-reason").required && !reason) return say(byId("dialog-error"), "A reason is needed.", "bad");
  button.disabled = true;
  say(byId("dialog-error"), "");
  try {
    await work({ reason, force: byId("dialog-force").checked, ...(operator ? { operator } : {}) });
    if (own === turn) byId("dialog").close();
  } catch (problem) {
    if (own === turn) say(byId("dialog-error"), problem.message, "bad");
    else if (!byId("dialog").open) open({ title: `Not confirmed: ${title}`, body: [h("p", {}, problem.message)] });
    else console.info(`not confirmed: ${title}:`, problem.message);
  } finally {
    if (own === turn) button.disabled = false;
  }
}

/** The life of a half message; with its payload if this tab has the operator's token. */
export const showHalf = (id) => showRead(`/halves/${id}`, (half) => ({ title: "The life of a half message", body: describe(half) }));

/** Opens what `words` make of the answer, unless something else is shown by then. */
export async function showRead(path, words) {
  const [own, from] = [++turn, placeOf()];
  let shown;
  try {
    shown = words(await ask(path, { trusted: true }).catch((problem) => ([401, 403].includes(problem.status) ? ask(path) : Promise.reject(problem))));
  } catch (error) {
    shown = { title: "It cannot be read", body: [h("p", {}, error.message)] };
  }
  if (own === turn) open({ ...shown, from });
}

export function describe(half) {
  const facts = [
    ["Transaction", half.transaction_id], ["Order (key)", half.key ?? "none"], ["Purpose", half.purpose], ["Topic", half.topic],
    ["State", half.state.replace("_", " ")], ["Stored", `${timeOf(half.stored_at)}, ${seconds(half.age_seconds)} ago`],
    ["Place", `partition ${half.partition}, offset ${half.offset}`], ["Attempts", `${half.attempts}${half.epoch ? `, life ${half.epoch + 1}` : ""}`],
    ["Next check", half.next_check_at ? timeOf(half.next_check_at) : "none"], ["Last outcome", half.last_outcome ?? "none"],
  ];
  const parts = [h("dl", {}, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))];
  if (half.history) parts.push(h("ol", { class: "history" }, half.history.map((entry) => h("li", {}, h("strong", {}, entry.event.replace("_", " ")), entry.at ? ` ${timeOf(entry.at)}` : "", entry.detail ? `: ${entry.detail}` : ""))));
  if (half.payload) parts.push(h("pre", { class: "mono", tabindex: 0 }, half.payload));
  else if (["open", "parked"].includes(half.state) && "history" in half) parts.push(h("p", { class: "note" }, "The payload shows once this tab has the operator's token."));
  return parts;
}
