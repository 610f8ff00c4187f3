/* The page: what is typed and chosen, and what happens then. */

import { at, counted, made, say } from "./elements.js";
import { documentsOf, ofFile, written } from "./documents.js";
import { evaluate } from "./evaluation.js";
import { textOf } from "./files.js";
import { fragmentOf, stateOf } from "./link.js";
import { differenceOf, failureOf, letScroll, rankingOf } from "./ranking.js";
import { Refusal, modelsOf, rank, rankAddress } from "./server.js";
import * as sides from "./sides.js";
import { programOf } from "./snippets.js";

const LOADING_MS = 1000;

const page = { file: null, labels: new Map(), needsKey: false };

/** Say how many documents there are, or why they cannot be read. */
function count() {
  try {
    say(at("count"), counted(documentsOf(at("documents").value).length, "document"));
  } catch (error) {
    say(at("count"), error.message, true);
  }
}

/** Put the documents of a file into their field. */
async function readFile(file, field) {
  try {
    const [text, encoding] = await textOf(file);
    const found = ofFile(file.name, text, field);
    const texts = found.documents.map((document) => document.text);
    if (!texts.length) throw new Error("it has no documents");
    setDocuments(written(texts));
    at("columns").hidden = found.fields.length < 2;
    at("column").replaceChildren(...found.fields.map((name) => made("option", "", name)));
    if (found.field) at("column").value = found.field;
    page.file = file;
    const column = found.field ? ` from column \`${found.field}\`` : "";
    const how = encoding === "UTF-8" ? "" : `, read as ${encoding}`;
    say(at("count"), `${counted(texts.length, "document")}${column} of ${file.name}${how}`);
  } catch (error) {
    const said = error instanceof SyntaxError ? "it is not JSON" : error.message;
    say(at("count"), `${file.name} was not read: ${said}`, true);
  }
}

function setDocuments(text, labels = new Map()) {
  at("documents").value = text;
  at("columns").hidden = true;
  page.labels = labels;
  count();
  showCode();
}

/** Show a query of a file as the request of the page, with its labels, and rank it. */
function open(query) {
  at("query").value = query.query;
  setDocuments(
    written(query.passages.map((passage) => passage.text)),
    new Map(query.passages.map((passage) => [passage.text, passage.label])),
  );
  at("heading").scrollIntoView();
  at("heading").focus();
  submit();
}

/** Return the body of the request to a side; with `return_spans`, to show what was read. */
function requestTo(side, documents) {
  const texts = documents.map((document) => document.text);
  return { ...sides.bodyOf(side, at("query").value, texts, at("kind").value, at("top").value), return_spans: true };
}

async function rankAll() {
  const documents = documentsOf(at("documents").value);
  if (!documents.length) throw new Error("There are no documents to rank. Type one a line, or choose a file.");
  const found = [];
  // One after the other: side by side they would wait for each other, and their times would say nothing.
  for (const side of sides.sides()) {
    const isUncalibrated = at("kind").value === "probability" && !side.model.calibrated;
    try {
      found.push({ side, isUncalibrated, ranking: await rank(requestTo(side, documents), at("key").value) });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      askForKey(error);
      found.push({ side, error });
    }
  }
  show(found, documents);
}

function show(found, documents) {
  const ranked = found.filter((one) => one.ranking);
  if (!ranked.length) throw found[0].error;
  at("rankings").replaceChildren(
    ...found.map((one, i) => {
      const other = ranked.length > 1 ? found[1 - i] : undefined;
      return one.ranking ? rankingOf(one, other, documents, page.labels) : failureOf(one.side, one.error);
    }),
  );
  letScroll(at("rankings"));
  const failed = found.find((one) => one.error);
  if (failed) say(at("status"), `${failed.side.name} failed: ${failed.error.message}`, true);
  else if (ranked.length > 1) say(at("status"), differenceOf(...ranked));
  else say(at("status"), `${counted(ranked[0].ranking.results.length, "document")} ranked.`);
}

async function submit(event) {
  event?.preventDefault();
  if (at("go").disabled || !at("form").reportValidity()) return;
  at("go").disabled = true;
  say(at("status"), "Ranking …");
  try {
    await rankAll();
  } catch (error) {
    say(at("status"), error.message, true);
    at("rankings").replaceChildren();
  }
  at("go").disabled = false;
}

function askForKey(error) {
  if (error.status !== 401) return;
  page.needsKey = true;
  at("keys").hidden = false;
  showCode();
}

/** Ask the server for its models until they are loaded. */
async function describe() {
  try {
    const models = await modelsOf(at("key").value);
    at("model").textContent = models.map((model) => model.id).join(", ") || "The model is being loaded …";
    if (!models.length) return void setTimeout(describe, LOADING_MS);
    sides.offer(models);
    at("kind").querySelector("[value=probability]").disabled = !models.some((model) => model.calibrated);
    at("settings").disabled = at("go").disabled = at("measure").disabled = false;
    await restore();
    showCode();
  } catch (error) {
    askForKey(error);
    const isKeyMissing = error.status === 401 && !at("key").value;
    say(at("model"), isKeyMissing ? "This server needs a key. Give it below." : error.message, !isKeyMissing);
  }
}

/** Return the state of the page that a link keeps. */
function state() {
  return {
    query: at("query").value,
    documents: at("documents").value,
    kind: at("kind").value,
    top: at("top").value,
    sides: sides.sides().map(({ model, maxLength, longDocuments }) => ({ model: model.id, maxLength, longDocuments })),
  };
}

/** Set the page as its link says. */
async function restore() {
  try {
    const found = await stateOf(location.hash);
    if (!found) return;
    for (const name of ["query", "top"]) at(name).value = found[name];
    setDocuments(found.documents);
    const isOffered = [...at("kind").options].some((option) => option.value === found.kind && !option.disabled);
    at("kind").value = isOffered ? found.kind : "sigmoid";
    const missing = sides.set(found.sides);
    arrange();
    const said = [
      ...missing.map((name) => `The link names ${name}, which this server does not offer.`),
      ...(isOffered ? [] : [`The link wants scores of the kind ${found.kind}, which no model here has.`]),
    ];
    say(at("status"), said.join(" ") || "The page is as in the link.", said.length > 0);
  } catch (error) {
    say(at("status"), error.message, true);
  }
}

async function copyLink() {
  try {
    const fragment = await fragmentOf(state());
    history.replaceState(null, "", fragment);
    await copy(location.href);
    say(at("copied"), `The link is copied. It has the query and the documents, in ${fragment.length} characters.`);
  } catch (error) {
    say(at("copied"), error.message, true);
  }
}

async function copyCode() {
  await copy(at("code").textContent);
  say(at("copied"), "The program is copied.");
}

/** Copy a text. A page that came without TLS may not use the clipboard, but may copy what is selected. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = made("textarea", "unseen", text);
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

/** Show the present request as a program, while its part of the page is open. */
function showCode() {
  if (!at("program").open || at("settings").disabled) return;
  try {
    const chosen = sides.sides().find((side) => side.name === at("code-side").value) ?? sides.sides()[0];
    const body = sides.bodyOf(
      chosen,
      at("query").value,
      documentsOf(at("documents").value).map((one) => one.text),
      at("kind").value,
      at("top").value,
    );
    at("code").textContent = programOf(at("language").value, rankAddress(), body, page.needsKey);
  } catch (error) {
    at("code").textContent = error.message;
  }
}

/** Show the second side if it is wanted. */
function arrange() {
  at("side-B").hidden = at("code-sides").hidden = !sides.areCompared();
  document.body.classList.toggle("compared", sides.areCompared());
  showCode();
}

let stop = new AbortController();

async function measure() {
  const [file] = at("labelled").files;
  if (!file) return say(at("progress"), "Choose a file first.", true);
  stop = new AbortController();
  at("measure").disabled = true;
  at("stop").hidden = false;
  try {
    await evaluate(file, sides.sides(), at("key").value, stop.signal, open);
  } finally {
    at("measure").disabled = false;
    at("stop").hidden = true;
  }
}

/** Mark the same document on the other side while the pointer is on it. */
function markSame(event) {
  const index = event.target.closest?.("li")?.dataset.index;
  for (const item of at("rankings").querySelectorAll("li")) item.classList.toggle("same", item.dataset.index === index);
}

at("form").addEventListener("submit", submit);
at("form").addEventListener("input", showCode);
at("documents").addEventListener("input", () => {
  at("columns").hidden = true;
  page.labels = new Map();
  count();
});
at("column").addEventListener("change", () => readFile(page.file, at("column").value));
at("file").addEventListener("change", () => at("file").files[0] && readFile(at("file").files[0]));
at("key").addEventListener("change", describe);
at("compare").addEventListener("change", arrange);
for (const name of sides.NAMES) {
  at(`model-${name}`).addEventListener("change", (event) => sides.choose(name, event.target.value));
}
at("link").addEventListener("click", copyLink);
at("copy").addEventListener("click", copyCode);
at("program").addEventListener("toggle", showCode);
at("measure").addEventListener("click", measure);
at("stop").addEventListener("click", () => stop.abort());
at("rankings").addEventListener("pointerover", markSame);
at("rankings").addEventListener("pointerleave", markSame);
addEventListener("hashchange", restore);
addEventListener("resize", () => letScroll(at("rankings")));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("dragging", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]);
  });
}
count();
describe();
