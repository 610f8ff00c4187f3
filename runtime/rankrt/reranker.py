"""The reranker: encode, plan, run, score, and back into the caller's order."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from rankrt import cascade
from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact import INSTRUCTION_SETS, Artifact, InstructionSet, Precision, Variant
from rankrt.backends import Backend
from rankrt.backends.ort_causal import OrtCausal, progressively
from rankrt.builds import build_command
from rankrt.depth import Depth, checked_exits
from rankrt.devices import Device
from rankrt.errors import DeviceError, InputError, ScoreError
from rankrt.machine import this_machine
from rankrt.placement import device_of, place
from rankrt.planner import plan
from rankrt.progressive import Policy, Progressive
from rankrt.ranking import Hit, Ranking, Stages
from rankrt.rules import Rules
from rankrt.sources import Hub, find_artifact
from rankrt.tokenizer import Encoded, Pair, PairTokenizer, Worded
from rankrt.variants import Variants, open_tokenizer, open_variant

# Pairs are encoded in blocks, so that a million of them need memory for their texts and scores only.
_BLOCK_PAIRS = 4096
# For a GPU the next block is encoded while this one is scored: a few runs, so that the first does not wait for long.
_GPU_BLOCK_PAIRS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of pairs, and what they took.

    logits           (n_pairs,) the best logit among a pair's rows
    spans            (n_pairs, 2) the characters of the passage in the row that scored best, where passages are chunked
    truncated        (n_pairs,) whether some of the passage was not seen
    query_truncated  (n_pairs,) whether some of the query was not seen
    n_tokens         the tokens the model computed
    n_saved_tokens   the tokens that it did not, because rows begin alike
    """

    logits: Float32Array
    spans: Int64Array
    truncated: BoolArray
    query_truncated: BoolArray
    n_tokens: int
    n_saved_tokens: int = 0

    def with_scores_of(self, other: "Scored", pairs: Int64Array) -> "Scored":
        """Return these scores with those of some pairs, by their numbers, in the place of their own."""
        logits, spans = self.logits.copy(), self.spans.copy()
        logits[pairs], spans[pairs] = other.logits, other.spans
        return replace(self, logits=logits, spans=spans, n_tokens=self.n_tokens + other.n_tokens)


class Reranker:
    """A loaded model that scores how well passages answer a query. Threads may share one.

    A score depends on its pair only: on a CPU it is the same to the last bit alone, in a batch, in any order, from any
    thread. A GPU's kernels are chosen by the shape of a run, so there it is the same within rounding.
    """

    def __init__(
        self,
        artifact: Artifact,
        variant: Variant,
        tokenizer: PairTokenizer,
        variants: Variants,
        rules: Rules,
        depth: Depth | None = None,
    ) -> None:
        rules.check(tokenizer.template(rules), artifact.manifest.max_length)
        self.artifact = artifact
        self.variant = variant
        self.rules = rules
        self.depth = (depth or Depth()).checked(variant)
        self._tokenizer = tokenizer
        self._variants = variants
        self._backend = variants.backend(variant)
        self._check_engines(rules)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
        instruction_set: InstructionSet | None = None,
        n_threads: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        prepare: bool = True,
        cutoff_layer: int | None = None,
        share_prefix: bool = True,
        gpu_memory_gb: float | None = None,
        **rules: Any,
    ) -> Self:
        """Load an artifact and make it ready to score.

        source      a folder with an artifact, a hub id whose repository holds one, or a checkpoint of either kind,
                    which is exported into the cache once (needs the export extra)
        device      "cpu"; "cuda" or "tensorrt", with the number of the GPU as in "cuda:1"; "auto" takes a GPU if there
                    is one that can be used and the artifact has a verified variant for it, else the CPU
        precision   "auto" takes on a CPU int8 if the artifact has verified it and this processor gains from it, else
                    fp32; on a GPU fp16, then fp32, and 8 bits only where there is nothing else
        instruction_set  of int8 on a CPU: take the graph for "vnni" or "avx2"; by default the one for this processor
        n_threads   threads for the model; by default the physical cores that affinity and cgroup quota leave
        max_length  tokens of a row, special ones counted; by default 512 or the model's limit
        revision    branch, tag or commit of a hub repository
        cache_dir   where hub downloads are kept; by default where huggingface_hub keeps them
        prepare     use the host's cache of prepared models (`rankrt cache`): a new model is packed into it once, then
                    loads in under a second and shares its memory with other processes
        cutoff_layer  of a layerwise model: read the score behind this layer and compute no further; by default the last
        share_prefix  of a causal model: compute what a query's rows begin with once; False for measurements
        gpu_memory_gb  the most that CUDA may take of the GPU's memory, weights counted; by default what is needed
        rules       the other fields of `Rules`: query_max_length, truncation, long_documents, instructions, question

        Raises ArtifactError, DeviceError, InputError, or MissingExtra if no engine is installed.
        """
        asked = Device.parse(device)
        _check_options(asked, n_threads, instruction_set, gpu_memory_gb)
        machine, hub = this_machine(), Hub(revision=revision, cache_dir=cache_dir)

        def find(wanted: Precision | Literal["auto"], on: Device | None) -> tuple[Artifact, Variant]:
            return find_artifact(source, lambda found: place(found, on, wanted, machine, instruction_set), hub)

        def opened(wanted: Variant) -> Backend | OrtCausal:
            return open_variant(
                artifact,
                wanted,
                where,
                n_threads=n_threads or machine.cores.n,
                prepare=prepare,
                gpu_memory_bytes=None if gpu_memory_gb is None else int(gpu_memory_gb * 2**30),
            )

        artifact, variant = find(precision, asked)
        where = device_of(variant, asked)
        if instruction_set is not None and variant.instruction_set is None:
            raise DeviceError(f"{variant.name} is for any processor; leave instruction_set={instruction_set!r} out")
        limit = artifact.manifest.max_length
        longest = artifact.manifest.template.max_length_within(limit)
        chosen = Rules(max_length=min(512, longest) if max_length is None else max_length, **rules)
        depth = Depth(cutoff_layer=cutoff_layer, share_prefix=share_prefix).checked(variant)
        n_cores = machine.cores.n if where.is_gpu else 1
        tokenizer = PairTokenizer(
            open_tokenizer(artifact, prepare=prepare, n_cores=n_cores), artifact.manifest.template
        )
        chosen.check(tokenizer.template(chosen), limit)
        variants = Variants(lambda wanted: find(wanted, where)[1], opened, where)
        return cls(artifact, variant, tokenizer, variants, chosen, depth)

    @property
    def device(self) -> Device:
        """Where the model runs."""
        return self._variants.device

    @property
    def n_threads(self) -> int:
        """How many threads the model may use."""
        return self._backend.capacity.n_threads

    def with_rules(self, **changes: Any) -> "Reranker":
        """Return a reranker with other rules (see `Rules`) over the same loaded model."""
        rules = replace(self.rules, **changes)
        return Reranker(self.artifact, self.variant, self._tokenizer, self._variants, rules, self.depth)

    def with_cutoff(self, layer: int) -> "Reranker":
        """Return a reranker over the same loaded model that reads scores behind another layer.

        Raises InputError, naming the layers that there are, if the model was not exported with that one.
        """
        depth = replace(self.depth, cutoff_layer=layer)
        return Reranker(self.artifact, self.variant, self._tokenizer, self._variants, self.rules, depth)

    def with_precision(self, precision: Precision) -> "Reranker":
        """Return a reranker over another variant of the same artifact, which is loaded the first time.

        Raises DeviceError if the artifact has none in that precision.
        """
        variant = self._variants.find(precision)
        return Reranker(self.artifact, variant, self._tokenizer, self._variants, self.rules, self.depth)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        normalize: bool = False,
        refine: Precision | None = None,
        progressive: Progressive = False,
    ) -> Ranking:
        """Order documents by how well they answer the query; keep the best `top_n`, or all.

        Scores are logits, or their sigmoid with `normalize`. With `refine`, a precision, the documents that can still
        be among the best `top_n`, by the drift that was measured when the variant was verified, are scored again in it.
        With `progressive`, of a layerwise model, a document that cannot be among the best `top_n` any more runs no
        further than to the exit where that shows, by margins that were measured on text at export: True, or the share
        of cases that a margin covered there; "exact" takes the largest that was seen, and runs those to the end after
        all that might still be above the last hit. `ranking.progress` says what was saved.
        No documents give an empty ranking. Raises InputError for an empty query or for what is not text.
        """
        documents = _as_list(documents, "documents")
        if top_n is not None and top_n < 1:
            raise InputError(f"top_n={top_n}, expected at least 1 (or None for all)")
        _check_query(query)
        if progressive is not False:
            return self._rank_progressively(query, documents, top_n, normalize, refine, progressive)
        scored = self.evaluate([(query, document) for document in documents])
        order, n_refined = np.argsort(-scored.logits, kind="stable")[:top_n], 0
        if refine is not None and refine != self.variant.precision:
            order, scored, n_refined = self._refine(query, documents, scored, top_n, refine)
        scores = sigmoid(scored.logits) if normalize else scored.logits
        return Ranking(
            hits=tuple(self._hit(int(i), float(scores[i]), documents[i], scored) for i in order),
            n_documents=len(documents),
            n_tokens=scored.n_tokens,
            n_saved_tokens=scored.n_saved_tokens,
            query_truncated=bool(scored.query_truncated.any()),
            n_refined=n_refined,
        )

    def score(
        self, pairs: Iterable[Pair], *, normalize: bool = False, cutoff_layers: Iterable[int] | None = None
    ) -> Float32Array:
        """Return a score for each (query, passage), in their order, shape (n_pairs,): logits, or their sigmoid.

        With `cutoff_layers`, of a layerwise model, shape (n_cutoffs, n_pairs): the scores behind each of these layers
        in ascending order, duplicates dropped; the deepest is the last that is computed. Raises InputError for an empty
        query, for what is not text, and for a layer without a head.
        """
        pairs = _as_list(pairs, "pairs")
        for pair in pairs:
            _check_pair(pair)
        logits = self.evaluate(pairs).logits if cutoff_layers is None else self.logits_at(cutoff_layers, pairs)
        return sigmoid(logits) if normalize else logits

    def evaluate(self, pairs: Sequence[Pair]) -> Scored:
        """Score pairs and report what it took. An empty query is scored like any other text."""
        blocks = [self._score_block(encoded) for encoded in self._encoded_blocks(pairs)]
        return Scored(
            logits=np.concatenate([block.logits for block in blocks]),
            spans=np.concatenate([block.spans for block in blocks]),
            truncated=np.concatenate([block.truncated for block in blocks]),
            query_truncated=np.concatenate([block.query_truncated for block in blocks]),
            n_tokens=sum(block.n_tokens for block in blocks),
            n_saved_tokens=sum(block.n_saved_tokens for block in blocks),
        )

    def logits_at(self, cutoff_layers: Iterable[int], pairs: Sequence[Pair]) -> Float32Array:
        """Return the logits behind layers, (n_cutoffs, n_pairs), as `score`. An empty query is scored like any text."""
        exits = checked_exits(cutoff_layers, self.variant)
        return np.concatenate([self._logits_of_block(exits, block) for block in _blocks(pairs)], axis=1)

    def encode(self, pairs: Sequence[Pair]) -> Encoded:
        """Return the rows of token ids that these pairs become."""
        return self._tokenizer.encode(pairs, self.rules)

    def close(self) -> None:
        """Release the model. Rerankers made by `with_rules` and `with_precision` share it."""
        self._variants.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        place = f" on {self.device}" if self.device.is_gpu else ""
        name = f"{self.artifact.manifest.name!r}, {self.variant.name}{place}"
        return f"Reranker({name}, max_length={self.rules.max_length})"

    def _check_engines(self, rules: Rules) -> None:
        """Raise DeviceError if the backend was built for shorter rows than the rules allow."""
        longest = self._backend.capacity.longest_row
        if longest is not None and rules.max_length > longest:
            command = build_command(self.artifact.folder, self.device, rules.max_length)
            raise DeviceError(
                f"the engines of {self.variant.name} take rows of up to {longest} tokens, max_length is"
                f" {rules.max_length}. Build longer ones: {command}"
            )

    def _encoded_blocks(self, pairs: Sequence[Pair]) -> Iterator[Encoded]:
        """Encode pairs block by block; for a GPU the next block while this one is scored."""
        queries: dict[str, Worded] = {}  # tokenized once for all blocks

        def encode(block: Sequence[Pair]) -> Encoded:
            return self._tokenizer.encode(block, self.rules, queries)

        if not self._backend.capacity.is_gpu:
            yield from map(encode, _blocks(pairs))
            return
        first, *others = _blocks(pairs, _GPU_BLOCK_PAIRS)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
            ahead = pool.submit(encode, first)
            for block in others:
                encoded, ahead = ahead.result(), pool.submit(encode, block)
                yield encoded
            yield ahead.result()

    def _score_block(self, encoded: Encoded) -> Scored:
        logits, n_saved = self._run(encoded)
        _check_finite(logits, encoded, self.variant)
        best = best_rows(logits, encoded.pair_of_row, len(encoded.truncated))
        return Scored(
            logits=logits[best],
            spans=encoded.spans[best],
            truncated=encoded.truncated,
            query_truncated=encoded.query_truncated,
            n_tokens=len(encoded.ids) - n_saved,
            n_saved_tokens=n_saved,
        )

    def _run(self, encoded: Encoded) -> tuple[Float32Array, int]:
        """Return a logit for each row, and how many tokens need not have been computed."""
        if isinstance(self._backend, OrtCausal):
            prefixes = self.depth.prefixes(encoded)
            (logits,) = self._backend.run(encoded, prefixes, [self.depth.exit(self.variant)])
            return logits, prefixes.n_saved_tokens
        return self._backend.run(encoded, plan(encoded.lengths, self._backend.capacity)), 0

    def _logits_of_block(self, exits: Sequence[int], pairs: Sequence[Pair]) -> Float32Array:
        """Return the best logit of each pair at each of these exits, (n_exits, n_pairs)."""
        encoded = self.encode(pairs)
        logits = self._at_exits(exits, encoded)
        for of_exit in logits:
            _check_finite(of_exit, encoded, self.variant)
        return np.stack([of_exit[best_rows(of_exit, encoded.pair_of_row, len(pairs))] for of_exit in logits])

    def _at_exits(self, exits: Sequence[int], encoded: Encoded) -> Float32Array:
        """Return the logits of rows at these exits, (n_exits, n_rows); on a GPU there is only one."""
        if isinstance(self._backend, OrtCausal):
            return self._backend.run(encoded, self.depth.prefixes(encoded), exits)
        logits, _ = self._run(encoded)
        return logits[None]

    @property
    def _causal(self) -> OrtCausal:
        """The backend, of a model that is known to have exits."""
        assert isinstance(self._backend, OrtCausal)
        return self._backend

    def _rank_progressively(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        normalize: bool,
        refine: Precision | None,
        progressive: Progressive,
    ) -> Ranking:
        if top_n is None or refine is not None or self.rules.long_documents == "chunk":
            raise InputError("progressive needs top_n, and goes neither with refine nor with long_documents='chunk'")
        deepest = self.depth.exit(self.variant) if self.variant.exits else 0
        policy = Policy.of(self.variant, deepest, progressive)
        if not documents:
            return Ranking(hits=(), n_documents=0, n_tokens=0, query_truncated=False)
        encoded = self.encode([(query, document) for document in documents])
        prefixes = self.depth.prefixes(encoded)
        found = progressively(self._causal, encoded, prefixes, policy, top_n)
        _check_finite(found.scores, encoded, self.variant)
        candidates = np.flatnonzero(found.exits == len(policy.layers) - 1)
        order = candidates[np.argsort(-found.scores[candidates], kind="stable")][:top_n]
        scored = Scored(
            logits=sigmoid(found.scores) if normalize else found.scores,
            spans=encoded.spans,
            truncated=encoded.truncated,
            query_truncated=encoded.query_truncated,
            n_tokens=len(encoded.ids) - prefixes.n_saved_tokens,
        )
        own = encoded.lengths - np.where(prefixes.of_row >= 0, prefixes.lengths, 0)
        return Ranking(
            hits=tuple(self._hit(int(i), float(scored.logits[i]), documents[i], scored) for i in order),
            n_documents=len(documents),
            n_tokens=scored.n_tokens,
            n_saved_tokens=prefixes.n_saved_tokens,
            query_truncated=bool(encoded.query_truncated.any()),
            progress=Stages(
                layers=policy.layers,
                n_documents=found.n_rows,
                n_checked=found.n_checked,
                share_saved=found.share_saved(own),
            ),
        )

    def _refine(
        self, query: str, documents: Sequence[str], scored: Scored, top_n: int | None, precision: Precision
    ) -> tuple[Int64Array, Scored, int]:
        """Score again who may be among the top n; return the order, the scores that are then known, and how many."""
        if top_n is None:
            raise InputError("refine needs top_n: without it every document would be scored twice")
        if (verification := self.depth.verification(self.variant)) is None:
            raise InputError(f"{self.variant.name} was not verified, so nobody knows how far its scores drift")
        exact, known = self.with_precision(precision), scored

        def score_again(chosen: Int64Array) -> Float32Array:
            nonlocal known
            again = exact.evaluate([(query, documents[i]) for i in chosen])
            known = known.with_scores_of(again, chosen)
            return again.logits

        found = cascade.refine(scored.logits, top_n, verification.max_difference, score_again)
        return found.order, known, found.n_refined

    def _hit(self, index: int, score: float, document: str, scored: Scored) -> Hit:
        start, stop = map(int, scored.spans[index])
        return Hit(
            index=index,
            score=score,
            document=document,
            truncated=bool(scored.truncated[index]),
            span=(start, stop) if self.rules.long_documents == "chunk" else None,
        )


def _blocks(pairs: Sequence[Pair], size: int | None = None) -> list[Sequence[Pair]]:
    size = size or _BLOCK_PAIRS
    return [pairs[i : i + size] for i in range(0, max(1, len(pairs)), size)]


def sigmoid(logits: Float32Array) -> Float32Array:
    """Map logits to (0, 1) as FlagEmbedding does: 1 / (1 + exp(-x)) in double precision."""
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def best_rows(logits: Float32Array, pair_of_row: Int64Array, n_pairs: int) -> Int64Array:
    """Return for each pair the row with the highest logit, the first of equals. Every pair has a row."""
    order = np.lexsort((-logits, pair_of_row))
    return order[np.searchsorted(pair_of_row[order], np.arange(n_pairs))]


def _check_options(
    device: Device | None, n_threads: int | None, instruction_set: str | None, gpu_memory_gb: float | None
) -> None:
    if gpu_memory_gb is not None and gpu_memory_gb <= 0:
        raise InputError(f"gpu_memory_gb={gpu_memory_gb}, expected more than 0 (or None for what is needed)")
    if gpu_memory_gb is not None and device is not None and device.target != "cuda":
        raise InputError(f"gpu_memory_gb bounds what CUDA takes, device={str(device)!r} does not heed it; drop it")
    for name, value in (("n_threads", n_threads), ("instruction_set", instruction_set)):
        if value is not None and device is not None and device.is_gpu:
            raise InputError(f"{name} is for the CPU, device={str(device)!r} does not heed it; drop it")
    if n_threads is not None and n_threads < 1:
        raise InputError(f"n_threads={n_threads}, expected at least 1 (or None for all usable cores)")
    if instruction_set not in (None, *INSTRUCTION_SETS):
        raise InputError(f"instruction_set={instruction_set!r}, expected one of {', '.join(INSTRUCTION_SETS)}, or None")


def _as_list(items: Iterable[Any], name: str) -> list[Any]:
    if isinstance(items, str | bytes):
        raise InputError(f"{name} is one {type(items).__name__}, expected a list")
    return list(items)


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise InputError(f"the query is {type(query).__name__}, not str")
    if not query.strip():
        raise InputError("the query is empty: there is nothing to rank by")


def _check_pair(pair: object) -> None:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InputError(f"expected pairs (query, passage), got {pair!r:.80}")
    _check_query(pair[0])


def _check_finite(logits: Float32Array, encoded: Encoded, variant: Variant) -> None:
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise ScoreError(
            f"{variant.name} answered {logits[row]} for pair {encoded.pair_of_row[row]}: the variant is not fit for"
            " this text; use another precision"
        )
