/* Which parts of a text the model has read. The server counts code points, and strings here count UTF-16 units. */

/** Return a text in parts, [{text, kind}]: "unread", "read", and "window" for the part that scored best. */
export function partsOf(text, read, span) {
  const [start, stop] = unitsOf(text, read);
  const [first, last] = span ? unitsOf(text, span) : [stop, stop];
  const parts = [
    { kind: "unread", text: text.slice(0, start) },
    { kind: "read", text: text.slice(start, first) },
    { kind: "window", text: text.slice(first, last) },
    { kind: "read", text: text.slice(last, stop) },
    { kind: "unread", text: text.slice(stop) },
  ];
  // Tokens have no white space around them, so a text that was read whole may leave some over.
  return parts.filter((part) => (part.kind === "unread" ? part.text.trim() : part.text));
}

function unitsOf(text, places) {
  if (!/[\ud800-\udfff]/.test(text)) return places;
  const units = places.map(() => text.length);
  let n = 0;
  let unit = 0;
  for (const character of text) {
    places.forEach((place, i) => {
      if (place === n) units[i] = unit;
    });
    n++;
    unit += character.length;
  }
  return units;
}
