/* What files hold: bytes to text, text to lines and to rows of cells. Knows neither documents nor labels. */

export const LINE_END = /\r\n|\n|\r/;
const MAX_FILE_BYTES = 32 * 1024 * 1024;

/** Return the text of a file and how it was written. Throws for a large file, and for what is not text. */
export async function textOf(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error("it has more than 32 MB");
  return decoded(new Uint8Array(await file.arrayBuffer()));
}

function decoded(bytes) {
  const begins = (...signs) => signs.every((sign, i) => bytes[i] === sign);
  if (begins(0xff, 0xfe)) return [new TextDecoder("utf-16le").decode(bytes), "UTF-16"];
  if (begins(0xfe, 0xff)) return [new TextDecoder("utf-16be").decode(bytes), "UTF-16"];
  const isBinary = bytes.some((byte) => byte < 9 || (byte > 13 && byte < 27)) || begins(0x25, 0x50, 0x44, 0x46);
  if (isBinary) throw new Error("it is not text; save it as text, CSV or JSON");
  try {
    return [new TextDecoder("utf-8", { fatal: true }).decode(bytes), "UTF-8"];
  } catch {
    return [new TextDecoder("windows-1252").decode(bytes), "Latin-1, because it is not UTF-8"];
  }
}

/** Return the lines of a text that are not empty, each with its number. */
export function linesOf(text) {
  const lines = text.split(LINE_END).map((line, i) => ({ text: line.trim(), place: `line ${i + 1}` }));
  return lines.filter((line) => line.text);
}

/** Return the rows under the header of a table as objects, each with its place. */
export function recordsOf(text) {
  const [header, ...rows] = rowsOf(text);
  if (!rows.length) throw new Error("this table has only a header");
  const names = header.cells.map((name) => name.trim());
  return rows.map(({ cells, line }) => {
    if (cells.length !== names.length) {
      throw new Error(`line ${line} has ${cells.length} cells, but the header has ${names.length}`);
    }
    return { value: Object.fromEntries(names.map((name, i) => [name, cells[i]])), place: `line ${line}` };
  });
}

/** Return the rows of a table whose cells may be quoted, each with the number of its first line. */
function rowsOf(text) {
  const head = text.split(LINE_END, 1)[0];
  const isMore = (sign, than) => head.split(sign).length > head.split(than).length;
  const separator = [",", ";", "\t"].reduce((best, sign) => (isMore(sign, best) ? sign : best));
  const rows = [];
  let cells = [];
  let cell = "";
  let isQuoted = false;
  let line = 1;
  let start = 1;
  const endRow = () => {
    cells.push(cell);
    if (cells.some(Boolean)) rows.push({ cells, line: start });
    cells = [];
    cell = "";
    start = line;
  };
  for (let i = 0; i < text.length; i++) {
    const sign = text[i];
    const isLineEnd = sign === "\n" || (sign === "\r" && text[i + 1] !== "\n");
    if (isLineEnd) line++;
    if (isQuoted && sign === '"' && text[i + 1] === '"') {
      cell += '"';
      i++;
    } else if (sign === '"' && (isQuoted || !cell)) isQuoted = !isQuoted;
    else if (isQuoted) cell += sign;
    else if (sign === separator) {
      cells.push(cell);
      cell = "";
    } else if (isLineEnd) endRow();
    else if (sign !== "\r") cell += sign;
  }
  if (isQuoted) throw new Error(`the quote that begins in line ${start} is not closed`);
  if (cell || cells.length) endRow();
  return rows;
}
