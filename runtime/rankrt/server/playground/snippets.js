/* A request as a program that sends it. A key is never a part of it: programs read RANKRT_API_KEY. */

const PROGRAMS = { curl, python, typescript };

/** Return a program in "curl", "python" or "typescript" that sends a body and shows the answer. */
export function programOf(language, address, body, needsKey) {
  return PROGRAMS[language](address, body, needsKey);
}

function curl(address, body, needsKey) {
  return [
    `curl -sS '${address.replaceAll("'", "'\\''")}' \\`,
    "  -H 'content-type: application/json' \\",
    ...(needsKey ? ['  -H "authorization: Bearer $RANKRT_API_KEY" \\'] : []),
    "  --data-binary @- <<'JSON'",
    JSON.stringify(body, null, 2), // no line of it can be the end mark
    "JSON",
  ].join("\n");
}

function python(address, body, needsKey) {
  // A text has no line breaks and no bare quotation marks in JSON, so only the flags match.
  const literal = JSON.stringify(body, null, 4).replace(
    /^( *"\w+": )(true|false)(,?)$/gm,
    (_, name, value, comma) => `${name}${value === "true" ? "True" : "False"}${comma}`,
  );
  const headers = ['"content-type": "application/json"'];
  if (needsKey) headers.push('"authorization": f"Bearer {os.environ[\'RANKRT_API_KEY\']}"');
  return [
    "import json",
    ...(needsKey ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${literal}`,
    "request = urllib.request.Request(",
    `    ${JSON.stringify(address)},`,
    "    json.dumps(body).encode(),",
    `    {${headers.join(", ")}},`,
    ")",
    "with urllib.request.urlopen(request) as response:",
    "    ranking = json.load(response)",
    'for hit in ranking["results"]:',
    '    print(hit["score"], body["documents"][hit["index"]])',
  ].join("\n");
}

function typescript(address, body, needsKey) {
  const headers = ['"content-type": "application/json"'];
  if (needsKey) headers.push("authorization: `Bearer ${process.env.RANKRT_API_KEY}`");
  return [
    `const body = ${JSON.stringify(body, null, 2)};`,
    `const response = await fetch(${JSON.stringify(address)}, {`,
    '  method: "POST",',
    `  headers: { ${headers.join(", ")} },`,
    "  body: JSON.stringify(body),",
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    "const ranking = JSON.parse(await response.text());",
    "for (const hit of ranking.results) console.log(hit.score, body.documents[hit.index]);",
    "export {};",
  ].join("\n");
}
