/* Queries whose passages have labels: FlagEmbedding's lines, labelled pairs, triplets. Each error names its line. */

import { linesOf, recordsOf } from "./files.js";

const EXPECTED =
  '{"query": text, "pos": [text], "neg": [text]}, {"query": text, "passage": text, "label": number} or ' +
  '{"query": text, "positive": text, "negative": text}';
const QUERIES = ["query", "anchor"];
const PASSAGES = ["passage", "document", "text"];
const LABELS = new Map([
  ["true", 1],
  ["false", 0],
]);

/**
 * Return the queries of a file, and a sentence for each line that cannot be used.
 *
 * A query is {query, place, passages}, and a passage {text, label, place}. A label is a whole number; 0 is a passage
 * that does not answer the query. Lines with the same query are one.
 */
export function queriesOf(name, text) {
  const errors = [];
  const found = new Map();
  const attempt = (place, work) => {
    try {
      work();
    } catch (error) {
      errors.push(`${place}: ${error.message}`);
    }
  };
  for (const { read, place } of itemsOf(name, text)) {
    attempt(place, () => {
      const { query, passages } = lineOf(read());
      if (!found.has(query)) found.set(query, { query, place, passages: new Map() });
      passages.forEach((passage) => add(found.get(query).passages, { ...passage, place }));
    });
  }
  const queries = [...found.values()].map((query) => ({ ...query, passages: [...query.passages.values()] }));
  for (const { place, passages } of errors.length ? [] : queries) {
    if (!passages.some(({ label }) => label > 0)) {
      errors.push(`${place}: no passage answers this query. Give one a label of 1 or more, or remove the query`);
    }
  }
  if (!queries.length && !errors.length) errors.push(`${name} has no queries; expected lines of ${EXPECTED}`);
  return { queries, errors };
}

/** Return the items of a file, each with its place and how it is read. Throws for a file that cannot be divided. */
function itemsOf(name, text) {
  if (/\.(csv|tsv)$/i.test(name)) return recordsOf(text).map(({ value, place }) => ({ read: () => value, place }));
  if (/\.json$/i.test(name) && /^\s*\[/.test(text)) {
    return JSON.parse(text).map((value, i) => ({ read: () => value, place: `item ${i + 1}` }));
  }
  return linesOf(text).map((line) => ({ read: () => jsonOf(line.text), place: line.place }));
}

function jsonOf(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(`this is not JSON; expected ${EXPECTED}`);
  }
}

/** Return the query and the passages of one line. */
function lineOf(value) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new Error(`expected ${EXPECTED}, got ${shown(value)}`);
  }
  const query = textOf(value, keyOf(value, QUERIES));
  const labelled = (texts, label) => texts.map((text) => ({ text, label }));
  if (Array.isArray(value.pos) || Array.isArray(value.neg)) {
    return { query, passages: [...labelled(textsOf(value, "pos"), 1), ...labelled(textsOf(value, "neg"), 0)] };
  }
  if ("label" in value) {
    return { query, passages: [{ text: textOf(value, keyOf(value, PASSAGES)), label: labelOf(value.label) }] };
  }
  const names = [
    ["positive", "pos"],
    ["negative", "neg"],
  ];
  if (names[0].some((key) => key in value)) {
    const [positive, negative] = names.map((keys) => textOf(value, keyOf(value, keys)));
    return { query, passages: [...labelled([positive], 1), ...labelled([negative], 0)] };
  }
  throw new Error(`it has only ${Object.keys(value).join(", ")}; expected ${EXPECTED}`);
}

/** Add a passage to those of a query by its text. Two labels of one passage are an error. */
function add(passages, passage) {
  const known = passages.get(passage.text);
  if (known && known.label !== passage.label) {
    throw new Error(
      `this passage has the label ${passage.label}, but ${known.label} at ${known.place}; remove one of them`,
    );
  }
  passages.set(passage.text, passage);
}

function keyOf(value, keys) {
  const found = keys.filter((key) => key in value);
  if (found.length === 1) return found[0];
  throw new Error(
    `${found.length ? `${found.join(" and ")} are both there` : `${keys[0]} is missing`}; expected ${EXPECTED}`,
  );
}

function textOf(value, key) {
  if (typeof value[key] === "string" && value[key].trim()) return value[key];
  throw new Error(`${key} is ${shown(value[key])}, expected a text that is not empty`);
}

function textsOf(value, key) {
  const texts = value[key] ?? [];
  if (!Array.isArray(texts)) throw new Error(`${key} is ${shown(texts)}, expected a list of texts`);
  texts.forEach((text, i) => {
    if (typeof text !== "string" || !text.trim()) {
      throw new Error(`${key} ${i + 1} is ${shown(text)}, expected a text that is not empty`);
    }
  });
  return texts;
}

/** Return a label. Cells of a table are texts, and some files have true and false. */
function labelOf(value) {
  const text = ["string", "number", "boolean"].includes(typeof value) ? String(value).trim().toLowerCase() : "";
  const label = LABELS.get(text) ?? (text === "" ? NaN : Number(text));
  if (Number.isInteger(label) && label >= 0) return label;
  throw new Error(`label is ${shown(value)}, expected a whole number: 0 for a passage that does not answer the query`);
}

function shown(value) {
  const text = JSON.stringify(value) ?? "missing";
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}
