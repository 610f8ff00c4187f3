/* How two rankings of the same documents differ. A ranking is a list of results with an index, the best first. */

/** Return the rank of each document of a ranking, from 1, by its index. */
export function ranksOf(results) {
  return new Map(results.map((result, i) => [result.index, i + 1]));
}

/**
 * Return how far two rankings agree: whether the first document is the same, how many of the first n are in both, and
 * Kendall's tau of the documents that both have (undefined for fewer than two).
 */
export function agreement(first, second, most = 10) {
  const n = Math.min(most, first.length, second.length);
  const ranks = ranksOf(second);
  const shared = first.map((result) => ranks.get(result.index)).filter((rank) => rank !== undefined);
  const nShared = first.slice(0, n).filter((result) => ranks.get(result.index) <= n).length;
  const nPairs = (shared.length * (shared.length - 1)) / 2;
  return {
    n,
    nShared,
    isSameFirst: n > 0 && first[0].index === second[0].index,
    tau: nPairs ? 1 - (2 * sorted(shared).nSwapped) / nPairs : undefined,
  };
}

/** Sort numbers, and count the pairs that stood in the other order. */
function sorted(values) {
  if (values.length < 2) return { values, nSwapped: 0 };
  const middle = values.length >> 1;
  const left = sorted(values.slice(0, middle));
  const right = sorted(values.slice(middle));
  const merged = [];
  let nSwapped = left.nSwapped + right.nSwapped;
  let i = 0;
  for (const value of right.values) {
    while (i < left.values.length && left.values[i] < value) merged.push(left.values[i++]);
    nSwapped += left.values.length - i;
    merged.push(value);
  }
  return { values: merged.concat(left.values.slice(i)), nSwapped };
}
