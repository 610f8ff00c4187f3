/* Requests to the server that the page came from. Each failure is a sentence that says what to do. */

/** What the server refused: its sentence, the status (0 where there was no answer), and when to ask again. */
export class Refusal extends Error {
  constructor(message, status, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** Return the models that the server offers; an empty list while it loads them. Raises a Refusal. */
export async function modelsOf(key) {
  return (await ask("rankrt/v1/models", key)).data;
}

/** Return the address of the path that ranks. */
export function rankAddress() {
  return new URL("rankrt/rerank", document.baseURI).href;
}

/** Rank, and return the answer with `seconds` as this page waited for it. Raises a Refusal. */
export async function rank(body, key, signal) {
  const started = performance.now();
  const ranking = await ask("rankrt/rerank", key, { method: "POST", body: JSON.stringify(body), signal });
  return { ...ranking, seconds: (performance.now() - started) / 1000 };
}

async function ask(path, key, options = {}) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  let response, text;
  try {
    response = await fetch(path, { ...options, headers });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. See whether it still runs, then try again.", 0);
  }
  if (response.ok) return JSON.parse(text);
  throw refusalOf(response, text);
}

function refusalOf(response, text) {
  const seconds = Number(response.headers.get("retry-after")) || undefined;
  let said = `The server answered with status ${response.status}.`;
  try {
    said = JSON.parse(text).message ?? said;
  } catch {
    // A proxy before the server says it in HTML.
  }
  const advice = seconds ? `${/[.!?]$/.test(said) ? "" : "."} Try again in ${seconds} s.` : "";
  return new Refusal(said + advice, response.status, seconds);
}
