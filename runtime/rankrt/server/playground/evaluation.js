/* Ranks the passages of each query of a file on each side, and shows how well by their labels. */

import { at, counted, grouped, made, say, signed } from "./elements.js";
import { textOf } from "./files.js";
import { queriesOf } from "./labelled.js";
import { mean, median, ndcg, reciprocalRank, uncertainty } from "./measures.js";
import { rank } from "./server.js";
import { bodyOf, described } from "./sides.js";

const MOST_ERRORS = 20;
const MOST_QUERIES = 20;
const MOST_TRIES = 5;
// A screen reader says each progress.
const PROGRESS_MS = 2000;
// Below so many queries a normal distribution says little of their mean.
const FEWEST_FOR_UNCERTAINTY = 20;

/**
 * Read a file and rank its queries on the sides, one request at a time, so that their times can be compared.
 *
 * `signal` stops it. `open` shows one query as the request of the page.
 */
export async function evaluate(file, sides, key, signal, open) {
  at("errors").replaceChildren();
  at("measured").replaceChildren();
  const { queries, errors } = await read(file);
  showErrors(errors);
  if (errors.length) {
    say(at("progress"), `${file.name} has ${counted(errors.length, "error")}, so nothing was ranked.`, true);
    return;
  }
  const ranked = [];
  const failed = [];
  let saidAt = -Infinity;
  for (const query of queries) {
    if (signal.aborted) break;
    if (performance.now() - saidAt > PROGRESS_MS) {
      say(at("progress"), `${grouped(ranked.length)} of ${counted(queries.length, "query", "queries")} ranked …`);
      saidAt = performance.now();
    }
    try {
      ranked.push(await rankOn(sides, query, key, signal));
    } catch (error) {
      if (error.name === "AbortError") break;
      failed.push(`${query.place}: ${error.message}`);
      if (error.status === 0 || error.status === 401) break;
    }
  }
  showErrors(failed);
  if (ranked.length) at("measured").append(...tablesOf(ranked, sides, open));
  const share = ranked.length < queries.length ? `${grouped(ranked.length)} of ` : "";
  say(
    at("progress"),
    `${share}${counted(queries.length, "query", "queries")} of ${file.name} ranked.`,
    failed.length > 0,
  );
}

async function read(file) {
  try {
    const [text] = await textOf(file);
    return queriesOf(file.name, text);
  } catch (error) {
    const said = error instanceof SyntaxError ? "it is not JSON" : error.message;
    return { queries: [], errors: [`${file.name}: ${said}`] };
  }
}

/** Return what each side makes of a query: {query, sides: [{ndcg, rr, ms}]}. Raises a Refusal. */
async function rankOn(sides, query, key, signal) {
  const found = [];
  for (const side of sides) {
    const body = bodyOf(
      side,
      query.query,
      query.passages.map((passage) => passage.text),
      "logit",
    );
    const ranking = await rankPatiently(body, key, signal);
    const labels = ranking.results.map((result) => query.passages[result.index].label);
    found.push({ ndcg: ndcg(labels), rr: reciprocalRank(labels), ms: ranking.milliseconds.total });
  }
  return { query, sides: found };
}

/** Rank; if the server says when to ask again, wait so long, a few times. Raises a Refusal. */
async function rankPatiently(body, key, signal) {
  for (let n = 1; ; n++) {
    try {
      return await rank(body, key, signal);
    } catch (error) {
      if (![429, 503].includes(error.status) || n === MOST_TRIES) throw error;
      const seconds = error.retryAfterS ?? 1;
      say(at("progress"), `The server is busy. The next try is in ${seconds} s.`);
      await wait(seconds, signal);
    }
  }
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason);
      },
      { once: true },
    );
  });
}

function showErrors(errors) {
  const shown = errors.slice(0, MOST_ERRORS).map((error) => made("li", "", error));
  if (errors.length > MOST_ERRORS) shown.push(made("li", "", `and ${grouped(errors.length - MOST_ERRORS)} more`));
  at("errors").append(...shown);
}

function tablesOf(ranked, sides, open) {
  const parts = [summaryOf(ranked, sides)];
  if (sides.length > 1) parts.push(made("p", "", balanceOf(ranked)));
  const chosen = toLookAt(ranked);
  if (chosen.length) parts.push(queriesTable(chosen, sides, open));
  return parts;
}

function summaryOf(ranked, sides) {
  const values = (name) => sides.map((_, i) => ranked.map((one) => one.sides[i][name]));
  const rows = [
    ["nDCG@10", "ndcg"],
    ["MRR@10", "rr"],
  ].map(([title, name]) => {
    const found = values(name);
    return row(title, ...found.map((one) => mean(one).toFixed(4)), ...(sides.length > 1 ? [differenceOf(found)] : []));
  });
  const times = values("ms").map(median);
  const slower = times.length > 1 ? [`${signed(times[1] - times[0], 1)} ms`] : [];
  rows.push(row("median time", ...times.map((ms) => `${ms.toFixed(1)} ms`), ...slower));
  const title = sides.map((side) => `${side.name} is ${described(side)}`).join("; ");
  return table(title, ["", ...sides.map((side) => side.name), ...(sides.length > 1 ? ["B − A"] : [])], rows);
}

function differenceOf([first, second]) {
  const differences = second.map((value, i) => value - first[i]);
  const range = differences.length < FEWEST_FOR_UNCERTAINTY ? "" : ` ± ${uncertainty(differences).toFixed(4)}`;
  return `${signed(mean(differences), 4)}${range}`;
}

function balanceOf(ranked) {
  const differences = ranked.map(({ sides: [a, b] }) => b.ndcg - a.ndcg);
  const nBetter = differences.filter((by) => by > 0).length;
  const nWorse = differences.filter((by) => by < 0).length;
  const range = ranked.length < FEWEST_FOR_UNCERTAINTY ? "" : " The range after ± is the 95 % interval.";
  return (
    `By nDCG@10, B ranks ${counted(nBetter, "query", "queries")} better than A, ${grouped(nWorse)} worse, and ` +
    `${grouped(ranked.length - nBetter - nWorse)} alike.${range}`
  );
}

/** Return the queries to look at: those where the sides differ most, or those of the lowest nDCG. */
function toLookAt(ranked) {
  const loss = ({ sides: [a, b] }) => (b ? Math.abs(b.ndcg - a.ndcg) : 1 - a.ndcg);
  return ranked
    .filter(loss)
    .toSorted((x, y) => loss(y) - loss(x))
    .slice(0, MOST_QUERIES);
}

function queriesTable(chosen, sides, open) {
  const isPaired = sides.length > 1;
  const rows = chosen.map(({ query, sides: found }) => {
    const button = made("button", "link", query.query);
    button.type = "button";
    button.addEventListener("click", () => open(query));
    const difference = isPaired ? [signed(found[1].ndcg - found[0].ndcg, 4)] : [];
    return row(
      made("span", "", button, made("span", "soft", ` ${query.place}`)),
      ...found.map((one) => one.ndcg.toFixed(4)),
      ...difference,
    );
  });
  const title = isPaired ? "The queries that differ most, by nDCG@10" : "The queries with the lowest nDCG@10";
  return table(
    title,
    ["Query", ...sides.map((side) => (isPaired ? side.name : "nDCG@10")), ...(isPaired ? ["B − A"] : [])],
    rows,
  );
}

function row(head, ...cells) {
  const first = made("th", "", head);
  first.scope = "row";
  return made("tr", "", first, ...cells.map((cell) => made("td", "", cell)));
}

function table(title, names, rows) {
  const heads = names.map((name) => {
    const head = made(name ? "th" : "td", "", name);
    if (name) head.scope = "col";
    return head;
  });
  const whole = made(
    "table",
    "",
    made("caption", "", title),
    made("thead", "", made("tr", "", ...heads)),
    made("tbody", "", ...rows),
  );
  const frame = made("div", "scroll", whole);
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.setAttribute("aria-label", title);
  return frame;
}
