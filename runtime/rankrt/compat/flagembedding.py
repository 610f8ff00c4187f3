"""FlagEmbedding's interface over rankrt: change the import, keep the rest.

Follows FlagEmbedding 1.4's encoder-only, LLM and layerwise rerankers on one device: the same constructors, ids, scores
and result shapes. What it ignores without a word, and what cannot be honoured here, is an error.

Pairs may come as arrays and frames, too (see `rankrt.text.containers`).
A reranker is pickled and copied as a `Reranker` is.
One thing differs: of a checkpoint whose tokenizer_class is PreTrainedTokenizerFast, FlagEmbedding joins the two texts
without special tokens; transformers and rankrt put in those that tokenizer.json names.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt.errors import DeviceError, InputError
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
        asked = self.cutoff_layers if cutoff_layers is None else cutoff_layers
        if asked is None:
            return self._listed(reranker.evaluate(pairs).logits, is_normalized)
        layers: Any = [asked] if is_whole(asked) else asked
        found = self._listed(reranker.logits_at(layers, pairs), is_normalized)
        return found[0] if len(found) == 1 else found


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
