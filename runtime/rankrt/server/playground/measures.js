/* Measures of a ranking by the labels of its passages, in their order; as trec_eval and ir-measures compute them. */

/** Return nDCG of a ranking of all passages of a query. A passage gains its label, discounted by its rank. */
export function ndcg(labels, cutoff = 10) {
  const gain = (ordered) => ordered.slice(0, cutoff).reduce((sum, label, i) => sum + label / Math.log2(i + 2), 0);
  const best = gain(labels.toSorted((a, b) => b - a));
  return best ? gain(labels) / best : 0;
}

/** Return 1 divided by the rank of the first passage with a label above 0; 0 if it is after the cutoff. */
export function reciprocalRank(labels, cutoff = 10) {
  const rank = labels.slice(0, cutoff).findIndex((label) => label > 0) + 1;
  return rank ? 1 / rank : 0;
}

/** Return the mean of some numbers. */
export function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Return the median of some numbers. */
export function median(values) {
  const ordered = values.toSorted((a, b) => a - b);
  const middle = ordered.length >> 1;
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}

/** Return how far the mean of so many numbers may be from the true one, at 95 %: 1.96 standard errors. */
export function uncertainty(values) {
  const centre = mean(values);
  const variance = values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1);
  return 1.96 * Math.sqrt(variance / values.length);
}
