// One dialog for everything that is shown in full or settled: it asks for reason, name and token,
// and stays open with the sentence that says why something was refused.

import { ask, token } from "./api.js";
import { byId, h, say, seconds, timeOf } from "./dom.js";

const NAME = "halfmsg-operator";

let work = null;
let opener = null;

export function start() {
  const dialog = byId("dialog");
  byId("dialog-cancel").addEventListener("click", () => dialog.close());
  byId("dialog-form").addEventListener("submit", (event) => {
    event.preventDefault();
    confirm();
  });
  dialog.addEventListener("close", () => {
    // What was focused may have been drawn anew meanwhile.
    if (opener?.isConnected) opener.focus();
    else byId("halves-title").focus();
  });
}

/** ok: the button's text, none if there is nothing to confirm. fields: what is asked for before, and
 * most: in how many characters. run({reason, operator, force}) does it. */
export function open({ title, body, ok, fields = ["reason", "operator", "token"], most = { reason: 1000, operator: 200 }, force = false, run }) {
  opener = document.activeElement;
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
  const button = byId("dialog-ok");
  const [reason, operator] = [byId("dialog-reason").value.trim(), byId("dialog-operator").value.trim()];
  token.set(byId("dialog-token").value);
  sessionStorage.setItem(NAME, operator);
  if (byId("dialog-reason").required && !reason) return say(byId("dialog-error"), "A reason is needed.", "bad");
  button.disabled = true;
  say(byId("dialog-error"), "");
  try {
    await work({ reason, force: byId("dialog-force").checked, ...(operator ? { operator } : {}) });
    byId("dialog").close();
  } catch (problem) {
    say(byId("dialog-error"), problem.message, "bad");
  } finally {
    button.disabled = false;
  }
}

/** The life of a half message; with its payload if this tab has the operator's token. */
export async function showHalf(id) {
  const half = await ask(`/halves/${id}`, { trusted: true }).catch((problem) => (problem.status === 401 || problem.status === 403 ? ask(`/halves/${id}`) : Promise.reject(problem)));
  open({ title: "The life of a half message", body: describe(half) });
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
