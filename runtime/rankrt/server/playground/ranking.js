/* Shows a ranking of one side, or two beside each other with what differs. */

import { agreement, ranksOf } from "./comparison.js";
import { counted, grouped, made, unseen } from "./elements.js";
import { partsOf } from "./spans.js";
import { described } from "./sides.js";

// More hits would take the browser seconds to show.
const MOST_SHOWN = 500;
const KINDS = {
  logit: "logits: numbers of any size, as the model computes them",
  sigmoid: "sigmoids of logits: from 0 to 1, but not probabilities",
  probability: "probabilities, by the calibration of the artifact",
};
const CUT = { unread: "not read", window: "best window" };

/**
 * Return an element for the ranking of a side.
 *
 * `other` is the side that it is compared with, undefined if there is none. `labels` are those of passages, by text.
 */
export function rankingOf(ranked, other, documents, labels) {
  const { side, ranking } = ranked;
  const column = made("article", "ranking");
  const heading = made("h3", "", ...(other ? [made("span", "side", side.name), " "] : []), described(side));
  heading.id = `ranking-${side.name}`;
  column.setAttribute("aria-labelledby", heading.id);
  const hits = made("ol", "hits");
  hits.setAttribute("aria-label", "Documents, the most relevant first");
  const ranks = other && ranksOf(other.ranking.results);
  hits.append(
    ...ranking.results.slice(0, MOST_SHOWN).map((result, i) =>
      hitOf(result, i + 1, ranking.score_kind, {
        document: documents[result.index],
        label: labels.get(documents[result.index].text),
        move: other && moveOf(i + 1, ranks.get(result.index), other),
      }),
    ),
  );
  column.append(heading, ...notesOf(ranked), figuresOf(ranking), hits);
  return column;
}

/** Return an element for a side that failed. */
export function failureOf(side, error) {
  const column = made("article", "ranking");
  column.append(
    made("h3", "", made("span", "side", side.name), " ", described(side)),
    made("p", "error", error.message),
  );
  return column;
}

/** Return a sentence or two about how two rankings differ. */
export function differenceOf(first, second) {
  const { n, nShared, isSameFirst, tau } = agreement(first.ranking.results, second.ranking.results);
  const [a, b] = [first, second].map(({ ranking }) => ranking.milliseconds.total);
  const [slow, fast] = a > b ? [first, second] : [second, first];
  const times = Math.max(a, b) / Math.min(a, b);
  return [
    isSameFirst ? "Both have the same first document." : "The first documents differ.",
    n < first.ranking.results.length ? `Of the first ${n}, ${nShared} are the same.` : "",
    tau === undefined ? "" : `Kendall's tau is ${tau.toFixed(2)}; 1 is the same order.`,
    times < 1.05
      ? "Both took the same time."
      : `${slow.side.name} took ${times.toFixed(1)} times as long as ${fast.side.name}.`,
  ]
    .filter(Boolean)
    .join(" ");
}

/** Let the keyboard scroll the texts that are longer than their place, and show their best window. */
export function letScroll(container) {
  const texts = [...container.querySelectorAll(".text")];
  const areLong = texts.map((text) => text.scrollHeight > text.clientHeight);
  texts.forEach((text, i) => {
    if (areLong[i]) text.tabIndex = 0;
    else text.removeAttribute("tabindex");
    const mark = areLong[i] && text.querySelector("mark");
    if (mark) text.scrollTop = mark.offsetTop - text.offsetTop - text.clientHeight / 3;
  });
}

function notesOf({ ranking, isUncalibrated }) {
  const notes = [made("p", "soft", "Scores are ", made("b", "", KINDS[ranking.score_kind]), ".")];
  if (isUncalibrated) {
    notes.push(
      made(
        "p",
        "warning",
        "This model has no calibration, so it has no probabilities. ",
        made("code", "", "rankrt calibrate"),
        " fits one.",
      ),
    );
  }
  if (ranking.query_truncated) notes.push(made("p", "warning", "✂ The query was cut off."));
  if (ranking.results.length > MOST_SHOWN) {
    notes.push(made("p", "warning", `The first ${MOST_SHOWN} of ${grouped(ranking.results.length)} are shown.`));
  }
  return notes;
}

function figuresOf(ranking) {
  const { total, tokenization, queue, inference } = ranking.milliseconds;
  const figures = {
    server: `${total.toFixed(1)} ms`,
    tokenizing: `${tokenization.toFixed(1)} ms`,
    waiting: `${queue.toFixed(1)} ms`,
    scoring: `${inference.toFixed(1)} ms`,
    "in this page": `${(ranking.seconds * 1000).toFixed(0)} ms`,
    tokens: grouped(ranking.n_tokens),
    ...(ranking.n_cached_tokens && { "from the cache": grouped(ranking.n_cached_tokens) }),
  };
  const pairs = Object.entries(figures).map(([name, value]) =>
    made("div", "", made("dt", "", name), made("dd", "", value)),
  );
  return made("dl", "figures", ...pairs);
}

/** Return by how many ranks a document is higher than on the other side. */
function moveOf(rank, otherRank, { side }) {
  if (otherRank === undefined) return made("span", "move", `not in ${side.name}`);
  const by = otherRank - rank;
  if (!by) return made("span", "move soft", "=", unseen(` as in ${side.name}`));
  const arrow = made("span", "", by > 0 ? "▲" : "▼");
  arrow.setAttribute("aria-hidden", "true");
  const words = unseen(`${by > 0 ? "higher" : "lower"} by `);
  return made(
    "span",
    `move ${by > 0 ? "up" : "down"}`,
    arrow,
    words,
    `${Math.abs(by)}`,
    made("span", "soft", ` (${side.name}: ${otherRank})`),
  );
}

function hitOf(result, rank, kind, { document, label, move }) {
  const facts = made("div", "facts");
  const bar = made("div", "bar");
  bar.style.width = `${100 * (kind === "logit" ? 1 / (1 + Math.exp(-result.score)) : result.score)}%`;
  facts.append(
    bar,
    made("span", "soft", `${rank}.`),
    made("span", "score", result.score.toFixed(4)),
    made("span", "soft", kind),
    ...(move ? [move] : []),
    ...(label === undefined ? [] : [made("span", label > 0 ? "label relevant" : "label", `label ${label}`)]),
    made("span", "soft", counted(result.n_tokens, "token")),
    made("span", "soft", document.place),
  );
  if (result.truncated) facts.append(made("span", "cut", `✂ ${shareRead(document.text, result.read)} read`));
  else if (result.span && result.span[1] - result.span[0] < result.read[1] - result.read[0]) {
    facts.append(made("span", "soft", "read in windows"));
  }
  const text = made("p", "text", ...partsOf(document.text, result.read, result.span).map(partOf));
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", `Text of ${document.place}`);
  const item = made("li", "", facts, text);
  item.dataset.index = result.index;
  return item;
}

function shareRead(text, [start, stop]) {
  const share = (100 * (stop - start)) / Math.max(1, [...text].length);
  return share < 1 ? "less than 1 %" : `${Math.floor(share)} %`;
}

function partOf({ kind, text }, i, parts) {
  if (kind === "read") return text;
  // A document that is one window needs no mark.
  if (kind === "window" && parts.every((part) => part.kind !== "read" && part.kind !== "unread")) return text;
  const name = made("span", "name", CUT[kind]);
  return made(kind === "window" ? "mark" : "span", kind, name, text);
}
