"""The systems of an evaluation: variants of artifacts, and checkpoints in PyTorch. Each ranks candidates of queries.

Everything that can be refused is refused when a system is described, before anything is scored.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from rankrt import Reranker
from rankrt.arrays import BoolArray, Float32Array, Int64Array
from rankrt.artifact.manifest import MANIFEST
from rankrt.artifact.precisions import Precision
from rankrt.artifact.source import local_folder
from rankrt.errors import InputError, MissingExtra, ScoreError
from rankrt.host.device import AUTO
from rankrt.host.host import this_host
from rankrt.llm.exits import checked_exits, verification_at
from rankrt.llm.progressive import Policy, Progressive
from rankrt.loading.open import find, fingerprint, rules_for
from rankrt.loading.placement import Placement
from rankrt.options import LoadOptions
from rankrt.text.options import DEFAULT_LENGTH, Rules

# Names a checkpoint that PyTorch runs, where a Hub id alone would be run by rankrt.
TORCH = "torch:"
# The rules that a checkpoint follows as well: sentence-transformers cuts the longer text first, whatever is asked.
_OF_TORCH = ("max_length", "truncation")
# Enough pairs for the planner to put rows of one length side by side, few enough that Ctrl-C loses seconds.
_BLOCK_PAIRS, _GPU_BLOCK_PAIRS = 256, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A query with the texts of its candidates."""

    query: str
    documents: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Candidates in a system's order.

    order        (n,) candidates by their places, best first
    scores       (n,) the score of each candidate, in their own order; NaN for one that got none
    n_truncated  how many pairs were cut; None where that is not known
    """

    order: Int64Array
    scores: Float32Array
    n_truncated: int | None = None


# Ranks the candidates of some queries.
Rank: TypeAlias = Callable[[Sequence[Asked]], list[Ranked]]


class System(Protocol):
    """Something that ranks.

    name         its row's
    identity     what its scores depend on
    weights      the same for systems with the same weights, whose scores should be alike
    block_pairs  how many pairs are ranked at once, if a query does not have more
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def identity(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def weights(self) -> str: ...  # noqa: D102
    @property
    def block_pairs(self) -> int: ...  # noqa: D102

    def open(self) -> AbstractContextManager[Rank]:
        """Load the model, and yield what ranks."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which variants of each artifact are evaluated, and in which ways of ranking.

    precisions     of each artifact; none is the one that rankrt would choose
    refine         one more row for each precision that is not this one: the best are scored again in it
    progressive    one more row for each layerwise variant, which stops early
    cutoff_layers  one more row for each of these layers of a layerwise model
    top_n          how many of the best `refine` and `progressive` are asked for
    """

    precisions: Sequence[Precision] = ()
    refine: Precision | None = None
    progressive: Progressive = False
    cutoff_layers: Sequence[int] = ()
    top_n: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankrtSystem:
    """A variant of an artifact."""

    label: str
    source: str
    options: LoadOptions
    rules: Rules
    placement: Placement
    cutoff_layer: int | None = None
    refine: Precision | None = None
    progressive: Progressive = False
    top_n: int | None = None

    @property
    def name(self) -> str:
        """The model, its variant and how it ranks."""
        variant = self.placement.variant
        parts = [f"{self.label} {variant.precision}"]
        parts += [f"{variant.target}"] if variant.target != "cpu" else []
        parts += [f"layer {self.cutoff_layer}"] if self.cutoff_layer is not None else []
        parts += [f"refined in {self.refine}"] if self.refine is not None else []
        parts += ["progressive" + ", exact" * (self.progressive == "exact")] if self.progressive is not False else []
        return ", ".join(parts)

    @property
    def identity(self) -> Mapping[str, str]:
        """The files, the rules and the programs. Threads are not among them: scores do not depend on them."""
        exact = _in_precision(self, self.refine) if self.refine is not None else None
        return {
            "artifact": fingerprint(self.placement),
            "variant": self.placement.variant.name,
            "device": str(self.placement.device),
            "processor": self.placement.host.machine.processor,
            "rules": str(self.rules),
            "cutoff_layer": str(self.cutoff_layer),
            "refine": "" if exact is None else fingerprint(exact),
            "progressive": str(self.progressive),
            "top_n": str(self.top_n),
            "programs": f"rankrt {version('rankrt')}, {_engine()}",
        }

    @property
    def weights(self) -> str:
        """The digest of the checkpoint's weights."""
        return self.placement.artifact.manifest.source.weights_sha256

    @property
    def block_pairs(self) -> int:
        """As many as keep the planner busy; one query at a time where each is ranked by itself."""
        if self.top_n is not None:
            return 1
        return _GPU_BLOCK_PAIRS if self.placement.device.is_gpu else _BLOCK_PAIRS

    @contextmanager
    def open(self) -> Iterator[Rank]:
        """Load the model."""
        options, rules = ({f.name: getattr(of, f.name) for f in fields(of)} for of in (self.options, self.rules))
        with Reranker.load(self.source, cutoff_layer=self.cutoff_layer, **options, **rules) as reranker:
            if self.top_n is None:
                yield lambda asked: _ranked_by_scores(reranker, asked)
            else:
                yield lambda asked: [self._ranked_by_hits(reranker, one) for one in asked]

    def _ranked_by_hits(self, reranker: Reranker, asked: Asked) -> Ranked:
        """Ask for the best, as a caller would; the rest of the candidates follow in the order of the first stage."""
        hits = reranker.rank(
            asked.query, asked.documents, top_n=self.top_n, refine=self.refine, progressive=self.progressive
        )
        scores = np.full(len(asked.documents), np.nan, np.float32)
        best = [hit.index for hit in hits]
        scores[best] = [hit.score for hit in hits]
        rest = np.setdiff1d(np.arange(len(scores)), best)
        return Ranked(order=np.concatenate([np.array(best, np.int64), rest]), scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSystem:
    """A checkpoint in PyTorch, by sentence-transformers' CrossEncoder in fp32. Its scores are logits, as rankrt's.

    Rows have 512 tokens or the model's limit, unless `max_length` says otherwise, as for rankrt.
    """

    label: str
    source: str
    max_length: int | None
    device: str | None
    n_threads: int | None
    weights: str
    block_pairs: int = _BLOCK_PAIRS

    @property
    def name(self) -> str:
        """The checkpoint."""
        return f"{self.label} PyTorch"

    @property
    def identity(self) -> Mapping[str, str]:
        """The weights, the length and the programs."""
        programs = ("sentence-transformers", "transformers", "torch")
        return {
            "checkpoint": self.source,
            "weights": self.weights,
            "max_length": str(self.max_length),
            "device": str(self.device),
            "programs": ", ".join(f"{name} {version(name)}" for name in programs),
        }

    @contextmanager
    def open(self) -> Iterator[Rank]:
        """Load the model on the device; by default on a GPU if PyTorch sees one."""
        import torch
        from sentence_transformers import CrossEncoder

        n_threads = torch.get_num_threads()
        torch.set_num_threads(self.n_threads or n_threads)
        model = CrossEncoder(self.source, device=self.device, model_kwargs={"dtype": torch.float32})
        model.max_seq_length = self.max_length or min(DEFAULT_LENGTH, model.max_seq_length or DEFAULT_LENGTH)

        def rank(asked: Sequence[Asked]) -> list[Ranked]:
            pairs = [(one.query, document) for one in asked for document in one.documents]
            logits = model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False) if pairs else []
            return _split(np.asarray(logits, np.float32), None, asked)

        if (n_labels := model.config.num_labels) != 1:
            raise InputError(f"{self.source} gives {n_labels} scores for a pair; a reranker gives one")
        try:
            yield rank
        finally:
            torch.set_num_threads(n_threads)


def systems_of(sources: Sequence[str], wanted: Wanted, options: LoadOptions, rules: Mapping[str, Any]) -> list[System]:
    """Return a system for each row: each model in the order given, its precisions, then its ways of ranking.

    A folder with a rankrt.json is an artifact; another folder is a checkpoint, and so is a name after "torch:". A Hub
    id is what `Reranker.load` takes it for.
    """
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise InputError(f"{twice[0]} is given twice. Leave one of them out")
    found: list[System] = []
    for source, label in zip(sources, _labels(sources), strict=True):
        if (checkpoint := _checkpoint(source)) is not None:
            found.append(_torch(checkpoint, label, options, rules))
        else:
            found += _rankrt(source, label, wanted, options, rules)
    ours = [system for system in found if isinstance(system, RankrtSystem)]
    if wanted.refine is not None and not any(system.refine for system in ours):
        raise InputError(f"refine={wanted.refine!r} adds no row: no other precision is evaluated. Leave it out")
    if wanted.progressive is not False and not any(system.progressive for system in ours):
        raise InputError("progressive needs a layerwise model, and none of these is one. Leave it out")
    if wanted.cutoff_layers and not any(system.cutoff_layer for system in ours):
        raise InputError("cutoff_layers are for layerwise models, and none of these is one. Leave it out")
    return found


def _labels(sources: Sequence[str]) -> list[str]:
    """Return the last part of each name, or the whole of one whose last part others have too."""
    whole = [source.removeprefix(TORCH).rstrip("/") for source in sources]
    short = [Path(name).name or name for name in whole]
    return [last if short.count(last) == 1 else name for last, name in zip(short, whole, strict=True)]


def _checkpoint(source: str) -> str | None:
    """Return the checkpoint that a source names, or None if it is for rankrt."""
    if source.startswith(TORCH):
        return source.removeprefix(TORCH)
    folder = local_folder(source)
    return source if folder is not None and not (folder / MANIFEST).exists() else None


def _rankrt(
    source: str, label: str, wanted: Wanted, options: LoadOptions, rules: Mapping[str, Any]
) -> Iterable[RankrtSystem]:
    for precision in wanted.precisions or ("auto",):
        placement = find(source, replace(options, precision=precision), this_host())
        plain = RankrtSystem(
            label=label,
            source=source,
            options=replace(options, precision=placement.variant.precision),
            rules=rules_for(placement.artifact, rules),
            placement=placement,
        )
        yield plain
        is_layerwise = len(placement.variant.exits) > 1
        if wanted.cutoff_layers and is_layerwise:
            for layer in checked_exits(wanted.cutoff_layers, placement.variant):
                yield replace(plain, cutoff_layer=layer)
        if wanted.refine not in (None, placement.variant.precision):
            yield _refined(plain, wanted)
        if wanted.progressive is not False and is_layerwise:
            Policy.of(placement.variant, None, wanted.progressive)
            yield replace(plain, progressive=wanted.progressive, top_n=wanted.top_n)


def _refined(plain: RankrtSystem, wanted: Wanted) -> RankrtSystem:
    found = replace(plain, refine=wanted.refine, top_n=wanted.top_n)
    if verification_at(None, plain.placement.variant) is None:
        raise InputError(f"refine needs a drift that was measured, and {plain.name} was not verified")
    assert wanted.refine is not None
    _in_precision(found, wanted.refine)
    return found


def _in_precision(system: RankrtSystem, precision: Precision) -> Placement:
    """Return where the same artifact runs in another precision. Raises DeviceError if it has none."""
    options = replace(system.options, precision=precision, device=str(system.placement.device))
    return find(system.source, options, this_host())


def _torch(source: str, label: str, options: LoadOptions, rules: Mapping[str, Any]) -> TorchSystem:
    if find_spec("sentence_transformers") is None:
        raise MissingExtra(
            f"{source} is a checkpoint, which sentence-transformers runs: pip install 'rankrt[cpu,finetune]'. Or export"
            f" it first: rankrt export {source} ./{Path(source).name}.rk"
        )
    for field in fields(Rules):
        if field.name not in _OF_TORCH and rules.get(field.name, field.default) != field.default:
            raise InputError(
                f"{field.name}={rules[field.name]!r:.80} is for artifacts, but {source} is a checkpoint, which"
                " sentence-transformers runs without it. Leave one of them out"
            )
    folder = local_folder(source)
    if folder is not None:
        _check_head(folder)
    return TorchSystem(
        label=label,
        source=source,
        max_length=rules.get("max_length"),
        device=None if options.device == AUTO else options.device.replace("tensorrt", "cuda"),
        n_threads=options.n_threads,
        weights=source if folder is None else _weights_of(folder),
    )


def _check_head(folder: Path) -> None:
    """Raise InputError for a checkpoint that sentence-transformers would give a head of random numbers."""
    if (folder / "modules.json").exists():
        return
    try:
        architectures = json.loads((folder / "config.json").read_bytes()).get("architectures") or []
    except FileNotFoundError as error:
        raise InputError(f"{folder} is neither an artifact ({MANIFEST}) nor a checkpoint (config.json)") from error
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise InputError(
            f"{folder} is a checkpoint of {', '.join(architectures) or 'no known class'}. sentence-transformers would"
            " give it a head of random numbers. Export it with rankrt export, and evaluate the artifact"
        )


def _weights_of(folder: Path) -> str:
    """Return the digest of a checkpoint's weights, as the manifest of an export has it."""
    from rankrt_export.checkpoint.weights import hashed_in_background, open_weights

    with hashed_in_background(open_weights(folder)) as digest:
        return digest.result()


def _ranked_by_scores(reranker: Reranker, asked: Sequence[Asked]) -> list[Ranked]:
    pairs = [(one.query, document) for one in asked for document in one.documents]
    try:
        found = reranker.evaluate(pairs)
    except ScoreError as error:
        raise ScoreError(_named(error, asked)) from error
    return _split(found.logits, found.truncated, asked)


def _split(logits: Float32Array, truncated: BoolArray | None, asked: Sequence[Asked]) -> list[Ranked]:
    """Return the rankings of queries by the scores of all their pairs; equal scores keep the candidates' order."""
    found, start = list[Ranked](), 0
    for one in asked:
        of_query = slice(start, start + len(one.documents))
        found.append(
            Ranked(
                order=np.argsort(-logits[of_query], kind="stable"),
                scores=logits[of_query],
                n_truncated=None if truncated is None else int(truncated[of_query].sum()),
            )
        )
        start = of_query.stop
    return found


def _named(error: Exception, asked: Sequence[Asked]) -> str:
    """Return a message of the library, which knows pairs by their numbers, with the texts."""
    pairs = [(one.query, document) for one in asked for document in one.documents]

    def name(match: re.Match[str]) -> str:
        query, document = pairs[int(match[1])]
        return f"query {query!r:.80} with document {document!r:.80}"

    return re.sub(r"\bpair (\d+)\b", name, str(error))


def _engine() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def digest_of(identity: Mapping[str, str]) -> str:
    """Return a short digest of what scores depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
