// Asks the service. Every question has a deadline; every failure becomes a sentence.

const DEADLINE_MS = 15_000;
const TOKEN = "halfmsg-token";

export class Problem extends Error {
  constructor(message, status, body) {
    super(message);
    this.status = status;
    this.body = body ?? {};
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

export async function ask(path, { method = "GET", body, headers = {}, trusted = false } = {}) {
  const all = { ...headers };
  if (body !== undefined) all["Content-Type"] = "application/json";
  if (trusted && token.get()) all.Authorization = `Bearer ${token.get()}`;
  let answer, text;
  try {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    answer = await fetch(path, { method, headers: all, body: body === undefined ? undefined : JSON.stringify(body), signal, cache: "no-store" });
    text = await answer.text();
  } catch (error) {
    const why = error.name === "TimeoutError" ? "no answer in time" : "the connection broke off";
    throw new Problem(why, 0);
  }
  const json = parse(text);
  if (answer.ok) return json ?? text;
  const title = json?.title ?? answer.statusText;
  throw new Problem(json?.detail ? `${title} (${json.detail})` : title, answer.status, json);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
