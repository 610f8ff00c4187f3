"""FlagEmbedding's interface over rankrt: change the import, keep the rest.

Follows FlagEmbedding 1.4's encoder-only, LLM, layerwise and lightweight rerankers on one device: the same constructors,
ids, scores and result shapes. What it ignores without a word, and what cannot be honoured here, is an error.

Pairs may come as arrays and frames, too (see `rankrt.text.containers`).
A reranker is pickled and copied as a `Reranker` is.
One thing differs: of a checkpoint whose tokenizer_class is PreTrainedTokenizerFast, FlagEmbedding joins the two texts
without special tokens; transformers and rankrt put in those that tokenizer.json names.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.artifact.manifest import MANIFEST, open_artifact
from rankrt.errors import DeviceError, InputError
from rankrt.llm.exits import checked_exits
from rankrt.options import check_flag, check_whole, is_whole
from rankrt.reranker import Reranker
from rankrt.text.containers import is_one_pair, pairs_of
from rankrt.text.options import DEFAULT_LENGTH
from rankrt.text.pairs import Pair

# Options of older releases and of the README's examples, which FlagEmbedding 1.4 stores and never reads.
_IGNORED_THERE = {
    "passage_max_length": "use max_length, which counts query, passage and special tokens",
    "device": "use devices",
    "use_bf16": "the encoder rerankers have no bf16 path",
}


class _Scorer:
    """What FlagEmbedding's rerankers have in common: the constructor's options, which a call may replace."""

    def __init__(self, reranker: Reranker, *, max_length: int, query_max_length: int | None, normalize: bool) -> None:
        check_flag("normalize", normalize)
        self.max_length = max_length
        self.query_max_length = query_max_length
        self.normalize = normalize
        self._reranker = reranker

    def stop_self_pool(self) -> None:
        """Do nothing: there are no worker processes to stop."""

    def _is_normalized(self, normalize: bool | None) -> bool:
        if normalize is None:
            return self.normalize
        check_flag("normalize", normalize)
        return normalize

    def _for_call(self, max_length: int | None, query_max_length: int | None, **rules: Any) -> Reranker:
        length = self.max_length if max_length is None else max_length
        of_query = self.query_max_length if query_max_length is None else query_max_length
        return self._reranker.with_rules(max_length=length, query_max_length=_within(of_query, length), **rules)

    def _listed(self, logits: Float32Array, is_normalized: bool) -> Any:
        wide = logits.astype(np.float64)
        return (1 / (1 + np.exp(-wide)) if is_normalized else wide).tolist()


class FlagReranker(_Scorer):
    """Scores pairs as FlagEmbedding.FlagReranker does, in fp32.

    `use_fp16` has no effect on a CPU, there as here. `batch_size` bounds memory there; here the planner does, and the
    scores do not depend on it. `trust_remote_code` is refused: rankrt runs no code that comes with a model.

    Scores differ for a checkpoint whose tokenizer_class is PreTrainedTokenizerFast: rankrt and transformers add its
    special tokens to a pair. FlagEmbedding joins ids by prepare_for_model, which adds none for that class.
    """

    def __init__(
        self,
        model_name_or_path: str,
        use_fp16: bool = False,
        query_instruction_for_rerank: str | None = None,
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = None,
        passage_instruction_format: str = "{}{}",
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        devices: str | int | Sequence[str] | Sequence[int] | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = DEFAULT_LENGTH,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse(kwargs)
        _check_host(trust_remote_code, devices)
        self.model_name_or_path = model_name_or_path
        self.use_fp16 = use_fp16
        self.batch_size = batch_size
        reranker = Reranker.load(
            model_name_or_path,
            device="cpu",
            precision="fp32",
            cache_dir=cache_dir,
            max_length=max_length,
            query_max_length=_within(query_max_length, max_length),
            query_instruction=query_instruction_for_rerank,
            query_instruction_format=query_instruction_format,
            passage_instruction=passage_instruction_for_rerank,
            passage_instruction_format=passage_instruction_format,
        )
        super().__init__(reranker, max_length=max_length, query_max_length=query_max_length, normalize=normalize)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Return the score of each (query, passage), or of the one that is given; always a list.

        Options that are given replace the constructor's for this call.
        """
        _refuse(kwargs)
        check_whole("batch_size", batch_size, least=1, none_is="the constructor's")
        reranker, is_normalized = self._for_call(max_length, query_max_length), self._is_normalized(normalize)
        scores: list[float] = self._listed(reranker.evaluate(_as_pairs(sentence_pairs)).logits, is_normalized)
        return scores


class FlagLLMReranker(_Scorer):
    """Scores pairs as FlagEmbedding.FlagLLMReranker does, in fp32.

    `use_fp16` and `use_bf16` have no effect on a CPU here: what is computed is what FlagEmbedding computes in fp32.
    `prompt` is the question that the model is asked; None instructions mean no words before the texts, as there.
    """

    def __init__(
        self,
        model_name_or_path: str,
        peft_path: str | None = None,
        use_fp16: bool = False,
        use_bf16: bool = False,
        query_instruction_for_rerank: str | None = "A: ",
        query_instruction_format: str = "{}{}",
        passage_instruction_for_rerank: str | None = "B: ",
        passage_instruction_format: str = "{}{}",
        cache_dir: str | None = None,
        trust_remote_code: bool = False,
        devices: str | int | Sequence[str] | Sequence[int] | None = None,
        prompt: str | None = None,
        batch_size: int = 128,
        query_max_length: int | None = None,
        max_length: int = DEFAULT_LENGTH,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse(kwargs)
        if peft_path is not None:
            raise InputError(
                f"peft_path={peft_path!r}: adapters are merged at export; rankrt export the adapter's folder"
            )
        _check_host(trust_remote_code, devices)
        self.model_name_or_path = model_name_or_path
        self.use_fp16, self.use_bf16 = use_fp16, use_bf16
        self.batch_size = batch_size
        self.prompt = prompt
        reranker = Reranker.load(
            model_name_or_path,
            device="cpu",
            precision="fp32",
            cache_dir=cache_dir,
            max_length=max_length,
            query_max_length=_within(query_max_length, max_length),
            query_instruction=query_instruction_for_rerank or "",
            query_instruction_format="{}{}" if query_instruction_for_rerank is None else query_instruction_format,
            passage_instruction=passage_instruction_for_rerank or "",
            passage_instruction_format="{}{}" if passage_instruction_for_rerank is None else passage_instruction_format,
            question=prompt,
        )
        super().__init__(reranker, max_length=max_length, query_max_length=query_max_length, normalize=normalize)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Return the score of each (query, passage), or of the one that is given; always a list.

        Options that are given replace the constructor's for this call.
        """
        _refuse(kwargs)
        check_whole("batch_size", batch_size, least=1, none_is="the constructor's")
        reranker, is_normalized = self._asking(max_length, query_max_length, prompt), self._is_normalized(normalize)
        scores: list[float] = self._listed(reranker.evaluate(_as_pairs(sentence_pairs)).logits, is_normalized)
        return scores

    def _asking(self, max_length: int | None, query_max_length: int | None, prompt: str | None) -> Reranker:
        return self._for_call(max_length, query_max_length, question=self.prompt if prompt is None else prompt)


class LayerWiseFlagLLMReranker(FlagLLMReranker):
    """Scores pairs as FlagEmbedding.LayerWiseFlagLLMReranker does on a CPU, where it computes in fp32.

    `cutoff_layers` are sorted and without duplicates: FlagEmbedding reads others by the wrong heads. A layer without a
    head is an error, where FlagEmbedding drops it.
    """

    def __init__(
        self, model_name_or_path: str, *args: Any, cutoff_layers: Sequence[int] | int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model_name_or_path, *args, **kwargs)
        self.cutoff_layers = cutoff_layers

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        batch_size: int | None = None,
        query_max_length: int | None = None,
        max_length: int | None = None,
        cutoff_layers: Sequence[int] | int | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the score of each pair: a list for one cutoff layer, a list of lists, by layer, for several."""
        _refuse(kwargs)
        check_whole("batch_size", batch_size, least=1, none_is="the constructor's")
        reranker, pairs = self._asking(max_length, query_max_length, prompt), _as_pairs(sentence_pairs)
        is_normalized = self._is_normalized(normalize)
        if (layers := self._layers(cutoff_layers)) is None:
            return self._listed(reranker.evaluate(pairs).logits, is_normalized)
        found = self._listed(reranker.logits_at(layers, pairs), is_normalized)
        return found[0] if len(found) == 1 else found

    def _layers(self, cutoff_layers: Sequence[int] | int | None) -> Any:
        """Return the layers of a call, or else the constructor's, as a list; None where neither names any."""
        asked = self.cutoff_layers if cutoff_layers is None else cutoff_layers
        return [asked] if is_whole(asked) else asked


class LightWeightFlagLLMReranker(LayerWiseFlagLLMReranker):
    """Scores pairs as FlagEmbedding.LightWeightFlagLLMReranker does on a CPU, where it computes in fp32.

    `rankrt export` fixes which head reads which layer, and how passages are compressed. So `cutoff_layers` are the
    first of those that were exported, `compress_layers` and `compress_ratio` those of the export. None takes what was
    exported. Everything else is an error, because FlagEmbedding's scores would be others.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *args: Any,
        cutoff_layers: Sequence[int] | int | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name_or_path, *args, cutoff_layers=cutoff_layers, **kwargs)
        self.compress_layers, self.compress_ratio = compress_layers, compress_ratio
        self._check(self._layers(None), compress_layers, compress_ratio)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        *,
        cutoff_layers: Sequence[int] | int | None = None,
        compress_layer: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the score of each pair: a list for one cutoff layer, a list of lists, by layer, for several.

        Options are those of LayerWiseFlagLLMReranker. `compress_layer` is the old name of `compress_layers`.
        """
        layers = compress_layers if compress_layer is None else compress_layer
        self._check(
            self._layers(cutoff_layers),
            self.compress_layers if layers is None else layers,
            self.compress_ratio if compress_ratio is None else compress_ratio,
        )
        return super().compute_score(sentence_pairs, cutoff_layers=cutoff_layers, **kwargs)

    def _check(self, cutoff_layers: Any, compress_layers: Sequence[int] | None, compress_ratio: int | None) -> None:
        """Raise InputError unless FlagEmbedding would compute what was exported."""
        variant = self._reranker.variant
        exits = [end.layer for end in variant.exits]
        asked = exits[-1:] if cutoff_layers is None else checked_exits(cutoff_layers, variant)
        if asked != exits[: len(asked)]:
            raise InputError(
                f"cutoff_layers={cutoff_layers}: FlagEmbedding reads the first layer that is asked for by the first"
                f" head, and this artifact was exported with the layers {_joined(exits)}. Ask for the first of them, or"
                f" export the model with --cutoff-layers {_joined(asked, ' ')}"
            )
        if compress_layers is None and compress_ratio is None:
            return
        layers, ratio = compress_layers, 1 if compress_ratio is None else compress_ratio
        if layers is None or ratio == 1:  # FlagEmbedding's defaults: after layer 8, and not at all
            layers = (8,) if ratio != 1 else ()
        given = {layer: ratio for layer in layers if 0 < layer < asked[-1]}
        if given != {one.layer: one.ratio for one in variant.compressions if one.layer < asked[-1]}:
            has = [f"{one.ratio} tokens to one after layer {one.layer}" for one in variant.compressions]
            raise InputError(
                f"compress_layers={compress_layers}, compress_ratio={compress_ratio}: this artifact compresses"
                f" {_joined(has) or 'nothing'}, which is fixed at export. Leave the options out, or export the model"
                " with --compress-layers and --compress-ratio"
            )


_CLASSES: Mapping[str, type[FlagReranker | FlagLLMReranker]] = MappingProxyType(
    {
        "encoder-only-base": FlagReranker,
        "decoder-only-base": FlagLLMReranker,
        "decoder-only-layerwise": LayerWiseFlagLLMReranker,
        "decoder-only-lightweight": LightWeightFlagLLMReranker,
    }
)
# FlagEmbedding 1.4.2, inference/reranker/model_mapping.py.
_KNOWN: Mapping[str, type[FlagReranker | FlagLLMReranker]] = MappingProxyType(
    {
        "bge-reranker-v2-gemma": FlagLLMReranker,
        "bge-reranker-v2-minicpm-layerwise": LayerWiseFlagLLMReranker,
        "bge-reranker-v2.5-gemma2-lightweight": LightWeightFlagLLMReranker,
        **dict.fromkeys(
            [
                "bge-reranker-base",
                "bge-reranker-large",
                "bge-reranker-v2-m3",
                "jina-reranker-v2-base-multilingual",
                "gte-multilingual-reranker-base",
                "bce-reranker-base_v1",
                "jina-reranker-v1-turbo-en",
            ],
            FlagReranker,
        ),
    }
)


class FlagAutoReranker:
    """Chooses the class of a reranker, as FlagEmbedding.FlagAutoReranker does."""

    def __init__(self) -> None:
        raise TypeError("FlagAutoReranker is not made by its constructor; use FlagAutoReranker.from_finetuned")

    @classmethod
    def from_finetuned(
        cls,
        model_name_or_path: str,
        model_class: str | Enum | None = None,
        use_fp16: bool = False,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return a reranker of the class `model_class`, or of the class that fits a model's name.

        An artifact says itself which model it is, whatever its name. Options are those of the class. Raises InputError
        if the class is unknown.
        """
        return _class_of(model_name_or_path, model_class)(
            model_name_or_path, use_fp16=use_fp16, trust_remote_code=bool(trust_remote_code), **kwargs
        )


def _class_of(model: str, model_class: str | Enum | None) -> type[FlagReranker | FlagLLMReranker]:
    if model_class is not None:
        name = str(model_class.value if isinstance(model_class, Enum) else model_class)
        if name not in _CLASSES:
            raise InputError(f"model_class={name!r}: expected one of {_joined(_CLASSES)}")
        return _CLASSES[name]
    folder = Path(model)
    if (folder / MANIFEST).exists():
        manifest = open_artifact(folder).manifest
        own = {"LayerWiseMiniCPMForCausalLM": LayerWiseFlagLLMReranker}
        own |= {"CostWiseGemmaForCausalLM": LightWeightFlagLLMReranker}
        return own.get(manifest.architecture, FlagReranker if manifest.template.prompt is None else FlagLLMReranker)
    name = folder.parent.name if folder.name.startswith("checkpoint-") else folder.name
    if name not in _KNOWN:
        raise InputError(
            f"{model}: FlagEmbedding knows no class for a model of that name. Name one as model_class:"
            f" {_joined(_CLASSES)}"
        )
    return _KNOWN[name]


def _joined(words: Iterable[Any], separator: str = ", ") -> str:
    return separator.join(map(str, words))


def _as_pairs(given: Any) -> list[Pair]:
    """Return pairs, or the one pair that is given, as the original takes them."""
    return pairs_of([given] if is_one_pair(given) else given)


def _within(query_max_length: int | None, max_length: int) -> int | None:
    """Return the most tokens of a query, which the original allows to be more than a row has."""
    check_whole("query_max_length", query_max_length, none_is="three quarters of max_length")
    check_whole("max_length", max_length)
    return None if query_max_length is None else min(query_max_length, max_length)


def _refuse(options: dict[str, Any]) -> None:
    for name in options:
        hint = _IGNORED_THERE.get(name)
        raise InputError(
            f"{name} has no effect in FlagEmbedding 1.4 ({hint}); drop it" if hint else f"unknown option {name}"
        )


def _check_host(trust_remote_code: bool, devices: Any) -> None:
    if trust_remote_code:
        raise InputError("trust_remote_code=True: rankrt runs no code that comes with a model; drop it")
    if not isinstance(devices, str | int | Sequence | None):
        raise DeviceError(f"devices={devices!r:.80}: only 'cpu' can be used so far")
    named = [devices] if isinstance(devices, str | int) else list(devices or ["cpu"])
    if len(named) > 1:
        raise DeviceError(f"devices={devices!r}: one reranker has one device here; run a process for each")
    if named[0] != "cpu":
        raise DeviceError(f"devices={devices!r}: only 'cpu' can be used so far")
