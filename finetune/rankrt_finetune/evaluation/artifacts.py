"""Variants of artifacts as systems of an evaluation, in each way in which rankrt ranks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from rankrt import Reranker
from rankrt.artifact.precisions import Precision
from rankrt.backends.session import import_onnxruntime
from rankrt.errors import InputError, ScoreError
from rankrt.host.host import this_host
from rankrt.llm.exits import checked_exits, verification_at
from rankrt.llm.progressive import Policy, Progressive
from rankrt.loading.open import find, fingerprint, rules_for
from rankrt.loading.placement import Placement
from rankrt.options import LoadOptions
from rankrt.text.options import Rules
from rankrt_finetune.evaluation.rankings import BLOCK_PAIRS, Asked, Rank, Ranked, split

# A GPU encodes the next pairs while it scores.
_GPU_BLOCK_PAIRS = 1024


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
            "programs": f"rankrt {version('rankrt')}, onnxruntime {import_onnxruntime().__version__}",
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
        return _GPU_BLOCK_PAIRS if self.placement.device.is_gpu else BLOCK_PAIRS

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


def artifact_systems(
    source: str, label: str, wanted: Wanted, options: LoadOptions, rules: Mapping[str, Any]
) -> Iterator[RankrtSystem]:
    """Yield the systems of an artifact, each precision with its ways of ranking.

    Raises ArtifactError, DeviceError or InputError for what cannot be had.
    """
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


def _ranked_by_scores(reranker: Reranker, asked: Sequence[Asked]) -> list[Ranked]:
    pairs = [(one.query, document) for one in asked for document in one.documents]
    try:
        found = reranker.evaluate(pairs)
    except ScoreError as error:
        raise ScoreError(_named(error, asked)) from error
    return split(found.logits, found.truncated, asked)


def _named(error: Exception, asked: Sequence[Asked]) -> str:
    """Return a message of the library, which knows pairs by their numbers, with the texts."""
    pairs = [(one.query, document) for one in asked for document in one.documents]

    def name(match: re.Match[str]) -> str:
        query, document = pairs[int(match[1])]
        return f"query {query!r:.80} with document {document!r:.80}"

    return re.sub(r"\bpair (\d+)\b", name, str(error))
