/* Documents as people have them: lines, JSON, tables. A document is {text, place}; the place names its line or item. */

import { LINE_END, linesOf, recordsOf } from "./files.js";

const TEXT_FIELDS = ["text", "document", "passage", "content", "body", "sentence", "chunk", "description", "title"];
const LIST_FIELDS = ["documents", "texts", "passages", "input", "results", "data"];

/** Return the documents of a text: JSON, JSON lines, or lines. What looks like JSON and is not is an error. */
export function documentsOf(text) {
  const lines = linesOf(text);
  const value = parsed(text);
  const isOneRecord = isRecord(value) && lines.length === 1 && textFieldsOf([value]).length > 0;
  if (Array.isArray(value) || (isRecord(value) && !isOneRecord)) return ofJson(value).documents;
  if (lines.length && lines.every((line) => line.text.startsWith("{"))) return ofJsonLines(lines).documents;
  if (/^\s*\[\s*["{]/.test(text)) throw new Error("this looks like a JSON list, but it is not valid JSON");
  const areStrings = lines.every((line) => line.text.startsWith('"') && typeof parsed(line.text) === "string");
  return areStrings ? ofJsonLines(lines).documents : lines;
}

/** Return the documents of a file by the kind that its name says, the field of their texts, and all such fields. */
export function ofFile(name, text, field) {
  if (/\.(csv|tsv)$/i.test(name)) return ofItems(recordsOf(text), field);
  if (/\.json$/i.test(name)) return ofJson(JSON.parse(text), field);
  if (/\.(jsonl|ndjson)$/i.test(name)) return ofJsonLines(linesOf(text), field);
  return { documents: linesOf(text), fields: [] };
}

/** Return texts as the field for documents has them: one a line, as JSON where a text has several lines. */
export function written(texts) {
  const isPlain = texts.every((text) => text && text.trim() === text && !LINE_END.test(text) && !/^["{[]/.test(text));
  return (isPlain ? texts : texts.map((text) => JSON.stringify(text))).join("\n");
}

/** Return the documents of a JSON list, or of an object with such a list. */
function ofJson(value, field) {
  const name = Array.isArray(value) ? undefined : LIST_FIELDS.find((list) => Array.isArray(value?.[list]));
  const list = name ? value[name] : value;
  if (!Array.isArray(list)) throw new Error("this JSON is neither a list nor an object with a list of documents");
  return ofItems(
    list.map((item, i) => ({ value: item, place: `item ${i + 1}` })),
    field,
  );
}

/** Return the documents of lines of which each is JSON. */
function ofJsonLines(lines, field) {
  const items = lines.map(({ text, place }) => {
    const value = parsed(text);
    if (value === undefined) throw new Error(`${place} is not JSON`);
    return { value, place };
  });
  return ofItems(items, field);
}

/** Return the documents of items that are texts or records with a text. */
function ofItems(items, field) {
  const fields = textFieldsOf(items.map((item) => item.value).filter(isRecord));
  const taken = fields.includes(field) ? field : fields[0];
  const documents = items.map(({ value, place }) => {
    const text = isRecord(value) ? value[taken] : value;
    if (typeof text === "string") return { text, place };
    throw new Error(`${place} is neither a text nor an object with ${taken ? `a text in \`${taken}\`` : "a text"}`);
  });
  return { documents, field: taken, fields };
}

/** Return the fields of some records that hold text: those with a usual name first, then the longest. */
function textFieldsOf(records) {
  const lengths = new Map();
  for (const [name, value] of records.flatMap(Object.entries)) {
    if (typeof value === "string") lengths.set(name, (lengths.get(name) ?? 0) + value.length);
  }
  const usual = (name) => TEXT_FIELDS.indexOf(name.toLowerCase()) + 1 || TEXT_FIELDS.length + 1;
  return [...lengths.keys()].sort((a, b) => usual(a) - usual(b) || lengths.get(b) - lengths.get(a));
}

function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Return the value of JSON, undefined for what is not JSON. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
