"""The reranker: a loaded model, the rules by which rows are cut, and the calls that rank and score."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial, update_wrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import PRECISIONS, AskedSet, Precision
from rankrt.errors import DeviceError, InputError
from rankrt.host.device import Device
from rankrt.llm.exits import check_cutoff, checked_exits, verification_at
from rankrt.llm.progressive import Policy, Progressive
from rankrt.loading.model import Model, Origin
from rankrt.loading.open import fingerprint, open_again, open_model, rules_for
from rankrt.loading.placement import Placement
from rankrt.loading.prepared import prepare_command
from rankrt.options import LoadOptions, check_choice, check_names, check_whole
from rankrt.ranking import Ordered, Ranking, order_plainly, order_progressively, order_refined
from rankrt.scale import Scale, check_threshold
from rankrt.scoring import OnProgress, Scored, Scorer
from rankrt.text.containers import documents_of, pairs_of
from rankrt.text.options import RuleOptions, Rules
from rankrt.text.pairs import Encoded, Pair

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RULES = tuple(field.name for field in fields(Rules))
_OPTIONS = (*_RULES, *(field.name for field in fields(LoadOptions)), "cutoff_layer")


def _awaited(
    call: Callable[Concatenate["Reranker", _P], _T],
) -> Callable[Concatenate["Reranker", _P], Coroutine[Any, Any, _T]]:
    """Return the same call for an event loop, which is free meanwhile."""

    async def awaited(reranker: "Reranker", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await reranker._model.run(partial(call, reranker, *args, **kwargs))

    update_wrapper(awaited, call)
    awaited.__name__ = f"a{call.__name__}"
    awaited.__qualname__ = f"Reranker.{awaited.__name__}"
    awaited.__doc__ = f"Await `{call.__name__}`, with the same options; the class says what that means."
    return awaited


class Reranker:
    """A loaded model that scores how well passages answer a query. Threads may share one.

    A score depends on its pair only. On a CPU it is bit-identical alone, in a batch, in any order, from any thread. A
    GPU chooses kernels by the shape of a run, so there it is the same within rounding.

    A child that is forked from a process with a reranker may use it, too. It loads the model again when it first needs
    it. On a GPU that is a DeviceError. A reranker is pickled by its source and its options, and loaded again where it
    is unpickled. `copy.deepcopy` gives one over the same loaded model.

    `await arank(...)` and `await ascore(...)` are `rank` and `score` for an event loop, which is free meanwhile. Two
    calls of a model run at a time, each in a thread, and others wait for their turn. If a task is cancelled, its call
    computes no further than to the end of the present run of the model. A call that waits for its turn when the
    reranker is closed is a ClosedError. `on_progress` is called in the call's thread.
    """

    def __init__(
        self, model: Model, rules: Rules, *, placement: Placement | None = None, cutoff_layer: int | None = None
    ) -> None:
        """Take a model, and another of its variants than the one that was chosen, by its placement."""
        self._model = model
        self._placement = placement or model.placement
        self.artifact = self._placement.artifact
        self.variant = self._placement.variant
        self.rules = rules
        self.cutoff_layer = cutoff_layer
        rules.check(model.tokenizer.template(rules), self.artifact.manifest.max_length)
        check_cutoff(cutoff_layer, self.variant)
        self._check_engines()

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        device: str = "auto",
        precision: Precision | Literal["auto"] = "auto",
        instruction_set: AskedSet | None = None,
        n_threads: int | None = None,
        max_length: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        prepare: bool = True,
        cutoff_layer: int | None = None,
        gpu_memory_gb: float | None = None,
        **rules: Unpack[RuleOptions],
    ) -> Self:
        """Load an artifact and make it ready to score.

        source      a folder with an artifact, or a hub id whose repository holds one. A checkpoint of either kind is
                    exported into the cache once, which needs the export extra
        device      "cpu"; "cuda" or "tensorrt", with the number of the GPU as in "cuda:1". "auto" takes a GPU that can
                    be used if the artifact has a verified variant for it, else the CPU
        precision   "auto" takes on a CPU int8 if the artifact has verified it and this processor gains from it, then
                    bf16 if `rankrt prepare` found it faster here, else fp32. On a GPU it takes fp16, then fp32, and 8
                    bits only where there is nothing else
        instruction_set  whose instructions the graph on a CPU is made of: "kernels", rankrt's own, for int8 and fp32;
                    "vnni" or "avx2", ONNX Runtime's for int8; "any", its own in fp32 and others. By default those that
                    are fastest on this processor
        n_threads   threads for the model; by default the physical cores that affinity and cgroup quota leave
        max_length  tokens of a row, special ones counted; by default 512 or the model's limit
        revision    branch, tag or commit of a hub repository
        cache_dir   where hub downloads are kept; by default where huggingface_hub keeps them
        prepare     use the host's cache of prepared models (`rankrt cache`). A new model is packed into it once. Then
                    it loads in under a second and shares its memory with other processes
        cutoff_layer  of a layerwise model: the layer whose score is returned; later ones are not computed. By default
                    the last exit
        gpu_memory_gb  the most that CUDA may take of the GPU's memory, weights counted; by default what is needed
        rules       the other fields of `Rules`: query_max_length, truncation, long_documents, instructions, question

        Raises ArtifactError, DeviceError, InputError, or MissingExtra if ONNX Runtime is not installed.
        """
        check_names("Reranker.load", rules, _OPTIONS)
        check_whole("max_length", max_length, none_is="512 or the model's limit")
        Rules(**rules)  # refused before anything is loaded
        options = LoadOptions(
            device=device,
            precision=precision,
            instruction_set=instruction_set,
            n_threads=n_threads,
            gpu_memory_gb=gpu_memory_gb,
            revision=revision,
            cache_dir=cache_dir,
            prepare=prepare,
        )
        model = open_model(source, options)
        given = rules_for(model.placement.artifact, {"max_length": max_length, **rules})
        return cls(model, given, cutoff_layer=cutoff_layer)

    @property
    def device(self) -> Device:
        """Where the model runs."""
        return self._placement.device

    @property
    def n_threads(self) -> int:
        """How many threads the model may use."""
        with self._model.use():
            return self._scorer().backend.capacity.n_threads

    def with_rules(self, **changes: Any) -> "Reranker":
        """Return a reranker with other rules (see `Rules`) over the same loaded model."""
        check_names("with_rules", changes, _RULES)
        return self._sibling(rules=replace(self.rules, **changes))

    def with_cutoff(self, layer: int) -> "Reranker":
        """Return a reranker over the same loaded model that returns the scores of another layer.

        Raises InputError, naming the layers that there are, if the model was not exported with that one.
        """
        return self._sibling(cutoff_layer=layer)

    def with_precision(self, precision: Precision) -> "Reranker":
        """Return a reranker over another variant of the same artifact, which is loaded the first time.

        Raises DeviceError if the artifact has none in that precision.
        """
        check_choice("precision", precision, PRECISIONS)
        return self._sibling(placement=self._model.find(precision))

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        normalize: bool = False,
        calibrated: bool = False,
        score_threshold: float | None = None,
        refine: Precision | None = None,
        progressive: Progressive = False,
        instruction: str | None = None,
        prompt_name: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Ranking:
        """Order documents by how well they answer the query.

        documents        a list, a tuple, a generator, an array or a column of texts; none give an empty ranking
        top_n            keep so many of the best; by default all
        normalize        return the sigmoid of logits
        calibrated       return probabilities, if the artifact has a calibration. Each hit says which kind it has
        score_threshold  keep only documents that reach it, a number of that kind
        refine           score again in this precision the documents that can still be among the best `top_n`. How far
                         a score may be off was measured when the variant was verified
        progressive      of a layerwise model: stop a document at the exit where it cannot be among the best `top_n` any
                         more. Margins were measured on text at export. True, or the share of cases that a margin
                         covered. "exact" takes the largest that was seen, and runs those to the end that might still be
                         above the last hit. `ranking.progress` says what was saved
        instruction      tell the model what to look for, if it was trained with a place for it
        prompt_name      take such a text of the artifact, by its name
        on_progress      is called with the number of documents of each scored block, but not with `progressive`

        Raises InputError before anything is scored: for an empty query, for documents that are not text, and for an
        option that cannot be honoured. Raises ClosedError after `close`.
        """
        if instruction is not None or prompt_name is not None:
            return self.with_rules(instruction=instruction, prompt_name=prompt_name).rank(
                query,
                documents,
                top_n=top_n,
                normalize=normalize,
                calibrated=calibrated,
                score_threshold=score_threshold,
                refine=refine,
                progressive=progressive,
                on_progress=on_progress,
            )
        documents = documents_of(documents)
        _check_query(query)
        check_whole("top_n", top_n, least=1, none_is="all")
        scale = Scale.of(self.artifact, self.cutoff_layer, normalize=normalize, calibrated=calibrated)
        check_threshold(score_threshold, scale.kind)
        check_choice("refine", refine, PRECISIONS, none_is="no second pass")
        with self._model.use():
            if progressive is not False:
                ordered = self._order_progressively(query, documents, top_n, refine, progressive)
            elif refine is not None:
                ordered = self._order_refined(query, documents, top_n, refine, on_progress)
            else:
                ordered = order_plainly(self._scorer(), query, documents, top_n, on_progress)
        has_spans = self.rules.long_documents == "chunk"
        return ordered.ranking(documents, scale, threshold=score_threshold, has_spans=has_spans)

    def score(
        self,
        pairs: Iterable[Pair],
        *,
        normalize: bool = False,
        calibrated: bool = False,
        cutoff_layers: Iterable[int] | None = None,
        instruction: str | None = None,
        prompt_name: str | None = None,
    ) -> Float32Array:
        """Return a score for each (query, passage), in their order, shape (n_pairs,).

        Scores are logits, their sigmoid with `normalize`, or probabilities with `calibrated`, as those of `rank`.
        With `cutoff_layers`, of a layerwise model, the shape is (n_cutoffs, n_pairs). Layers are in ascending order,
        without duplicates. Nothing is computed after the deepest. `instruction` and `prompt_name` are those of `rank`.

        Pairs are tuples, lists or rows of an array, in any of the containers that documents may be in. They may be a
        frame of two columns, too. Raises InputError before anything is scored: for an empty query, for pairs that are
        not text, and for a layer without a head. Raises ClosedError after `close`.
        """
        if instruction is not None or prompt_name is not None:
            told = self.with_rules(instruction=instruction, prompt_name=prompt_name)
            return told.score(pairs, normalize=normalize, calibrated=calibrated, cutoff_layers=cutoff_layers)
        pairs = pairs_of(pairs)
        for query in dict.fromkeys(query for query, _ in pairs):
            _check_query(query)
        if calibrated and cutoff_layers is not None:
            raise InputError("calibrated is for the scores of one layer; give cutoff_layer to Reranker.load instead")
        scale = Scale.of(self.artifact, self.cutoff_layer, normalize=normalize, calibrated=calibrated)
        return scale.scores(
            self.evaluate(pairs).logits if cutoff_layers is None else self.logits_at(cutoff_layers, pairs)
        )

    arank = _awaited(rank)
    ascore = _awaited(score)

    def evaluate(self, pairs: Sequence[Pair], *, on_progress: OnProgress | None = None) -> Scored:
        """Score pairs and report what it took. An empty query is scored like any other text.

        `on_progress` is called with the number of pairs of every block that was scored.
        """
        with self._model.use():
            return self._scorer().score(pairs, on_progress)

    def logits_at(self, cutoff_layers: Iterable[int], pairs: Sequence[Pair]) -> Float32Array:
        """Return the logits of layers, (n_cutoffs, n_pairs), as `score`. An empty query is scored like any text."""
        exits = checked_exits(cutoff_layers, self.variant)
        with self._model.use():
            return self._scorer().score_at(exits, pairs)

    def encode(self, pairs: Sequence[Pair]) -> Encoded:
        """Return the rows of token ids that these pairs become."""
        return self._model.tokenizer.encode(pairs, self.rules)

    def recipe(self) -> "Recipe":
        """Return how to load the same reranker in another process. A pickled reranker is its recipe."""
        if self._model.origin is None:
            raise TypeError("a reranker that was put together from parts cannot be pickled; use Reranker.load")
        return Recipe(
            origin=self._model.origin.pinned(self._placement),
            fingerprint=fingerprint(self._placement),
            rules=self.rules,
            cutoff_layer=self.cutoff_layer,
        )

    def close(self) -> None:
        """Release the model, after the calls of other threads have ended. A later call is a ClosedError.

        Rerankers made by `with_rules`, `with_cutoff`, `with_precision` and `copy` share the model, so they are closed,
        too. Closing twice is fine.
        """
        self._model.close()

    def __copy__(self) -> "Reranker":
        return self._sibling()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Reranker":
        return self._sibling()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recipe.load, (self.recipe(),)

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

    def _sibling(self, **changes: Any) -> "Reranker":
        own: dict[str, Any] = {"rules": self.rules, "placement": self._placement, "cutoff_layer": self.cutoff_layer}
        with self._model.use():
            return Reranker(self._model, **own | changes)

    def _scorer(self) -> Scorer:
        """Return what scores, to a call that is in `use` of the model."""
        return Scorer(
            backend=self._model.backend(self._placement),
            variant=self.variant,
            tokenizer=self._model.tokenizer,
            rules=self.rules,
            exits=() if self.cutoff_layer is None else (self.cutoff_layer,),
        )

    def _order_refined(
        self, query: str, documents: Sequence[str], top_n: int | None, refine: Precision, on_progress: OnProgress | None
    ) -> Ordered:
        if top_n is None:
            raise InputError("refine needs top_n: without it every document would be scored twice")
        if refine == self.variant.precision:
            self._check_was_chosen(refine)
            return order_plainly(self._scorer(), query, documents, top_n, on_progress)
        if (verification := verification_at(self.cutoff_layer, self.variant)) is None:
            raise InputError(f"refine needs a drift that was measured, and {self.variant.name} was not verified")
        exact = self.with_precision(refine)._scorer()
        plain = order_plainly(self._scorer(), query, documents, top_n, on_progress)
        return order_refined(plain, exact, query, documents, top_n, verification.max_difference)

    def _check_was_chosen(self, refine: Precision) -> None:
        """Raise InputError for refining in the precision of the scores, unless "auto" takes another on other hosts."""
        was_chosen = self._model.origin is not None and self._model.origin.options.precision == "auto"
        if not was_chosen or all(variant.precision == refine for variant in self.artifact.manifest.variants):
            raise InputError(f"refine={refine!r}, but {self.variant.name} scores in that precision; drop refine")

    def _order_progressively(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None,
        refine: Precision | None,
        progressive: Progressive,
    ) -> Ordered:
        if top_n is None or refine is not None or self.rules.long_documents == "chunk":
            raise InputError("progressive needs top_n, and goes neither with refine nor with long_documents='chunk'")
        policy = Policy.of(self.variant, self.cutoff_layer, progressive)
        return order_progressively(self._scorer(), query, documents, top_n, policy)

    def _check_engines(self) -> None:
        """Raise DeviceError if the engines were built for shorter rows than the rules allow."""
        longest = self._scorer().backend.capacity.longest_row
        if longest is not None and self.rules.max_length > longest:
            command = prepare_command(self._placement, self.rules.max_length)
            raise DeviceError(
                f"the engines of {self.variant.name} take rows of up to {longest} tokens, max_length is"
                f" {self.rules.max_length}. Build longer ones: {command}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to load a reranker again, to be sent to another process.

    origin       where the model came from, and the variant that was chosen
    fingerprint  of all that its scores come from; a process that finds other files refuses them
    """

    origin: Origin
    fingerprint: str
    rules: Rules
    cutoff_layer: int | None

    def load(self, *, n_threads: int | None = None) -> Reranker:
        """Load the reranker; `n_threads` are those of this process. Raises ArtifactError if its files are not here."""
        origin = self.origin
        if n_threads is not None:
            origin = replace(origin, options=replace(origin.options, n_threads=n_threads))
        return Reranker(open_again(origin, self.fingerprint), self.rules, cutoff_layer=self.cutoff_layer)


def _check_query(query: object) -> None:
    if not isinstance(query, str):
        raise InputError(f"the query is {type(query).__name__}, not str")
    if not query.strip():
        raise InputError("the query is empty: there is nothing to rank by")
