"""The reranker: encode, plan, run, score, and back into the caller's order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from rankrt import refinement
from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact.manifest import PRECISIONS, Artifact, InstructionSet, Precision, Variant, Verification
from rankrt.backends import Backend
from rankrt.backends.cpu_causal import OrtCausal, progressively
from rankrt.backends.planner import plan
from rankrt.errors import DeviceError, InputError, ScoreError
from rankrt.host.device import Device
from rankrt.llm.exits import Depth, checked_exits
from rankrt.llm.progressive import Policy, Progressive
from rankrt.loading.builds import build_command
from rankrt.loading.loading import OPTIONS, Loading, fingerprint, open_again, rooted
from rankrt.loading.open import Variants
from rankrt.options import check_choice, check_flag, check_names, check_whole
from rankrt.ranking import Hit, Ranking, Stages
from rankrt.text.containers import documents_of, pairs_of
from rankrt.text.options import Rules, default_length
from rankrt.text.pairs import Encoded, Pair, PairTokenizer, Worded

# Pairs are encoded in blocks, so that a million of them need memory for their texts and scores only.
_BLOCK_PAIRS = 4096
# Where progress is shown: a large model on a CPU takes seconds for so many.
_SHOWN_BLOCK_PAIRS = 256
# For a GPU the next block is encoded while this one is scored: a few runs, so that the first does not wait for long.
_GPU_BLOCK_PAIRS = 512
# Called with the number of pairs of a block that was scored.
OnProgress: TypeAlias = Callable[[int], object]

_RULES = tuple(field.name for field in fields(Rules))


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

    A child that is forked from a process with a reranker may use it too: it loads the model anew when it first needs
    it. On a GPU that is a DeviceError. A reranker is pickled by its source and its options, and loaded again where it
    is unpickled; `copy.deepcopy` gives one over the same loaded model.
    """

    def __init__(
        self,
        artifact: Artifact,
        variant: Variant,
        tokenizer: PairTokenizer,
        variants: Variants,
        rules: Rules,
        depth: Depth | None = None,
        loading: Loading | None = None,
    ) -> None:
        rules.check(tokenizer.template(rules), artifact.manifest.max_length)
        self.artifact = artifact
        self.variant = variant
        self.rules = rules
        self.depth = (depth or Depth()).checked(variant)
        self._tokenizer = tokenizer
        self._variants = variants
        self._loading = loading
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
        check_names("Reranker.load", rules, (*_RULES, *OPTIONS, "cutoff_layer", "share_prefix"))
        check_whole("max_length", max_length, none_is="512 or the model's limit")
        depth = Depth(cutoff_layer=cutoff_layer, share_prefix=share_prefix)
        given = None if max_length is None else Rules(max_length=max_length, **rules)
        loading = Loading(
            source=rooted(source),
            device=device,
            precision=precision,
            instruction_set=instruction_set,
            n_threads=n_threads,
            revision=revision,
            cache_dir=cache_dir,
            prepare=prepare,
            gpu_memory_gb=gpu_memory_gb,
        )
        loaded = loading.open()
        manifest = loaded.artifact.manifest
        chosen = given or Rules(max_length=default_length(manifest.template, manifest.max_length), **rules)
        return cls(loaded.artifact, loaded.variant, loaded.tokenizer, loaded.variants, chosen, depth, loading)

    @property
    def device(self) -> Device:
        """Where the model runs."""
        return self._variants.device

    @property
    def n_threads(self) -> int:
        """How many threads the model may use."""
        with self._variants.use():
            return self._backend.capacity.n_threads

    def with_rules(self, **changes: Any) -> "Reranker":
        """Return a reranker with other rules (see `Rules`) over the same loaded model."""
        check_names("with_rules", changes, _RULES)
        return self._sibling(rules=replace(self.rules, **changes))

    def with_cutoff(self, layer: int) -> "Reranker":
        """Return a reranker over the same loaded model that reads scores behind another layer.

        Raises InputError, naming the layers that there are, if the model was not exported with that one.
        """
        return self._sibling(depth=replace(self.depth, cutoff_layer=layer))

    def with_precision(self, precision: Precision) -> "Reranker":
        """Return a reranker over another variant of the same artifact, which is loaded the first time.

        Raises DeviceError if the artifact has none in that precision.
        """
        check_choice("precision", precision, PRECISIONS)
        return self._sibling(variant=self._variants.find(precision))

    def _sibling(
        self, *, variant: Variant | None = None, rules: Rules | None = None, depth: Depth | None = None
    ) -> "Reranker":
        with self._variants.use():
            return Reranker(
                self.artifact,
                variant or self.variant,
                self._tokenizer,
                self._variants,
                rules or self.rules,
                depth or self.depth,
                self._loading,
            )

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        normalize: bool = False,
        refine: Precision | None = None,
        progressive: Progressive = False,
        instruction: str | None = None,
        prompt_name: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Ranking:
        """Order documents by how well they answer the query; keep the best `top_n`, or all.

        Scores are logits, or their sigmoid with `normalize`. With `refine`, a precision, the documents that can still
        be among the best `top_n`, by the drift that was measured when the variant was verified, are scored again in it.
        With `progressive`, of a layerwise model, a document that cannot be among the best `top_n` any more runs no
        further than to the exit where that shows, by margins that were measured on text at export: True, or the share
        of cases that a margin covered there; "exact" takes the largest that was seen, and runs those to the end after
        all that might still be above the last hit. `ranking.progress` says what was saved.
        `instruction` tells the model what to look for, and `prompt_name` names such a text of the artifact; only for a
        model that was trained with a place for it.
        `on_progress` is called with the number of documents of every block that was scored, but not by `progressive`.
        Documents are a list, a tuple, a generator, an array or a column of texts; none give an empty ranking.

        Raises InputError, before anything is scored, for an empty query, for what is not text and for an option that
        cannot be honoured; ClosedError after `close`.
        """
        if instruction is not None or prompt_name is not None:
            return self.with_rules(instruction=instruction, prompt_name=prompt_name).rank(
                query,
                documents,
                top_n=top_n,
                normalize=normalize,
                refine=refine,
                progressive=progressive,
                on_progress=on_progress,
            )
        documents = documents_of(documents)
        _check_query(query)
        check_whole("top_n", top_n, least=1, none_is="all")
        check_flag("normalize", normalize)
        check_choice("refine", refine, PRECISIONS, none_is="no second pass")
        with self._variants.use():
            if progressive is not False:
                return self._rank_progressively(query, documents, top_n, normalize, refine, progressive)
            exact = None if refine is None else self._refining(refine, top_n)
            return self._rank(query, documents, top_n, normalize, exact, on_progress)

    def _rank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        normalize: bool,
        exact: "Reranker | None",
        on_progress: OnProgress | None,
    ) -> Ranking:
        scored = self._evaluate([(query, document) for document in documents], on_progress)
        order, n_refined = np.argsort(-scored.logits, kind="stable")[:top_n], 0
        if exact is not None and top_n is not None:
            order, scored, n_refined = self._refine(query, documents, scored, top_n, exact)
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
        self,
        pairs: Iterable[Pair],
        *,
        normalize: bool = False,
        cutoff_layers: Iterable[int] | None = None,
        instruction: str | None = None,
        prompt_name: str | None = None,
    ) -> Float32Array:
        """Return a score for each (query, passage), in their order, shape (n_pairs,): logits, or their sigmoid.

        With `cutoff_layers`, of a layerwise model, shape (n_cutoffs, n_pairs): the scores behind each of these layers
        in ascending order, duplicates dropped; the deepest is the last that is computed. `instruction` and
        `prompt_name` are those of `rank`.

        Pairs are tuples, lists or rows of an array, in any of the containers that documents may be in, or a frame of
        two columns. Raises InputError, before anything is scored, for an empty query, for what is not text, and for a
        layer without a head; ClosedError after `close`.
        """
        if instruction is not None or prompt_name is not None:
            told = self.with_rules(instruction=instruction, prompt_name=prompt_name)
            return told.score(pairs, normalize=normalize, cutoff_layers=cutoff_layers)
        pairs = pairs_of(pairs)
        for query in dict.fromkeys(query for query, _ in pairs):
            _check_query(query)
        check_flag("normalize", normalize)
        logits = self.evaluate(pairs).logits if cutoff_layers is None else self.logits_at(cutoff_layers, pairs)
        return sigmoid(logits) if normalize else logits

    def evaluate(self, pairs: Sequence[Pair], *, on_progress: OnProgress | None = None) -> Scored:
        """Score pairs and report what it took. An empty query is scored like any other text.

        `on_progress` is called with the number of pairs of every block that was scored.
        """
        with self._variants.use():
            return self._evaluate(pairs, on_progress)

    def _evaluate(self, pairs: Sequence[Pair], on_progress: OnProgress | None = None) -> Scored:
        blocks: list[Scored] = []
        for encoded in self._encoded_blocks(pairs, _BLOCK_PAIRS if on_progress is None else _SHOWN_BLOCK_PAIRS):
            blocks.append(self._score_block(encoded, sum(len(block.truncated) for block in blocks)))
            if on_progress is not None:
                on_progress(len(encoded.truncated))
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
        with self._variants.use():
            starts = range(0, max(1, len(pairs)), _BLOCK_PAIRS)
            blocks = zip(starts, _blocks(pairs), strict=True)
            return np.concatenate([self._logits_of_block(exits, block, start) for start, block in blocks], axis=1)

    def encode(self, pairs: Sequence[Pair]) -> Encoded:
        """Return the rows of token ids that these pairs become."""
        return self._tokenizer.encode(pairs, self.rules)

    def close(self) -> None:
        """Release the model, once the calls that other threads are in have ended; any later call is a ClosedError.

        Rerankers made by `with_rules`, `with_cutoff`, `with_precision` and `copy` share the model, so they are closed,
        too. Closing twice is fine.
        """
        self._variants.close()

    def __copy__(self) -> "Reranker":
        return self._sibling()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reranker":
        return self._sibling()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._loading is None:
            raise TypeError("a reranker that was put together from parts cannot be pickled; use Reranker.load")
        loading = self._loading.again(self.variant, self.device)
        return _load_again, (loading, fingerprint(self.artifact, self.variant), self.rules, self.depth)

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

    @property
    def _backend(self) -> Backend | OrtCausal:
        """The loaded variant; after a fork it is another than before."""
        return self._variants.backend(self.variant)

    def _check_engines(self, rules: Rules) -> None:
        """Raise DeviceError if the backend was built for shorter rows than the rules allow."""
        longest = self._backend.capacity.longest_row
        if longest is not None and rules.max_length > longest:
            command = build_command(self.artifact.folder, self.device, rules.max_length)
            raise DeviceError(
                f"the engines of {self.variant.name} take rows of up to {longest} tokens, max_length is"
                f" {rules.max_length}. Build longer ones: {command}"
            )

    def _encoded_blocks(self, pairs: Sequence[Pair], size: int) -> Iterator[Encoded]:
        """Encode pairs block by block; for a GPU the next block, of its own size, while this one is scored."""
        queries: dict[str, Worded] = {}  # tokenized once for all blocks

        def encode(block: Sequence[Pair]) -> Encoded:
            return self._tokenizer.encode(block, self.rules, queries)

        if not self._backend.capacity.is_gpu:
            yield from map(encode, _blocks(pairs, size))
            return
        first, *others = _blocks(pairs, _GPU_BLOCK_PAIRS)
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
            ahead = pool.submit(encode, first)
            for block in others:
                encoded, ahead = ahead.result(), pool.submit(encode, block)
                yield encoded
            yield ahead.result()

    def _score_block(self, encoded: Encoded, n_before: int) -> Scored:
        """Score the rows of some pairs; so many pairs of the call came before them."""
        logits, n_saved = self._run(encoded)
        self._check_finite(logits, encoded, n_before)
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
        backend = self._backend
        if isinstance(backend, OrtCausal):
            prefixes = self.depth.prefixes(encoded)
            (logits,) = backend.run(encoded, prefixes, [self.depth.exit(self.variant)])
            return logits, prefixes.n_saved_tokens
        return backend.run(encoded, plan(encoded.lengths, backend.capacity)), 0

    def _logits_of_block(self, exits: Sequence[int], pairs: Sequence[Pair], n_before: int) -> Float32Array:
        """Return the best logit of each pair at each of these exits, (n_exits, n_pairs)."""
        encoded = self.encode(pairs)
        logits = self._at_exits(exits, encoded)
        for of_exit in logits:
            self._check_finite(of_exit, encoded, n_before)
        return np.stack([of_exit[best_rows(of_exit, encoded.pair_of_row, len(pairs))] for of_exit in logits])

    def _at_exits(self, exits: Sequence[int], encoded: Encoded) -> Float32Array:
        """Return the logits of rows at these exits, (n_exits, n_rows); on a GPU there is only one."""
        backend = self._backend
        if isinstance(backend, OrtCausal):
            return backend.run(encoded, self.depth.prefixes(encoded), exits)
        logits, _ = self._run(encoded)
        return logits[None]

    @property
    def _causal(self) -> OrtCausal:
        """The backend, of a model that is known to have exits."""
        backend = self._backend
        assert isinstance(backend, OrtCausal)
        return backend

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
        self._check_finite(found.scores, encoded)
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

    def _refining(self, precision: Precision, top_n: int | None) -> "Reranker | None":
        """Return the reranker that scores again, or None where every score is in that precision already."""
        if top_n is None:
            raise InputError("refine needs top_n: without it every document would be scored twice")
        if precision == self.variant.precision:
            was_chosen = self._loading is not None and self._loading.precision == "auto"
            if was_chosen and any(v.precision != precision for v in self.artifact.manifest.variants):
                return None  # on another host "auto" takes another
            raise InputError(f"refine={precision!r}, but {self.variant.name} scores in that precision; drop refine")
        self._drift()
        return self.with_precision(precision)

    def _drift(self) -> Verification:
        if (verification := self.depth.verification(self.variant)) is None:
            raise InputError(f"refine needs a drift that was measured, and {self.variant.name} was not verified")
        return verification

    def _refine(
        self, query: str, documents: Sequence[str], scored: Scored, top_n: int, exact: "Reranker"
    ) -> tuple[Int64Array, Scored, int]:
        """Score again who may be among the top n; return the order, the scores that are then known, and how many."""
        known = scored

        def score_again(chosen: Int64Array) -> Float32Array:
            nonlocal known
            again = exact._evaluate([(query, documents[i]) for i in chosen])
            known = known.with_scores_of(again, chosen)
            return again.logits

        found = refinement.refine(scored.logits, top_n, self._drift().max_difference, score_again)
        return found.order, known, found.n_refined

    def _check_finite(self, logits: Float32Array, encoded: Encoded, n_before: int = 0) -> None:
        """Raise ScoreError, naming the pair, for what is not a number; `n_before` pairs of the call came before."""
        if np.isfinite(logits).all():
            return
        row = int(np.flatnonzero(~np.isfinite(logits))[0])
        found = f"{self.variant.name} answered {logits[row]} for pair {n_before + encoded.pair_of_row[row]}"
        if self.variant.precision == "fp32":
            raise ScoreError(
                f"{found}: no precision is more exact, so the checkpoint's weights are at fault; export another one"
            )
        raise ScoreError(
            f"{found}: use precision='fp32'. If that answers the same, the checkpoint's weights are at fault"
        )

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


def _load_again(loading: Loading, expected: str, rules: Rules, depth: Depth) -> Reranker:
    """Load a reranker that was pickled."""
    loaded = open_again(loading, expected)
    return Reranker(loaded.artifact, loaded.variant, loaded.tokenizer, loaded.variants, rules, depth, loading)


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise InputError(f"the query is {type(query).__name__}, not str")
    if not query.strip():
        raise InputError("the query is empty: there is nothing to rank by")
