"""sentence-transformers' CrossEncoder over rankrt: `predict` and `rank`, their options, scores and result types.

Follows sentence-transformers 6. Its models with several labels have no artifact, so a pair has one score. Tensors are
made by the torch that the caller has imported; this module imports none.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from rankrt.arrays import Float32Array
from rankrt.artifact.precisions import Precision
from rankrt.errors import DeviceError, InputError
from rankrt.options import check_text, check_whole
from rankrt.reranker import Reranker
from rankrt.scoring import sigmoid
from rankrt.text.containers import documents_of, is_one_pair, pairs_of
from rankrt.text.pairs import Pair

# Maps logits, (n_pairs, 1) as there, to scores. It gets a tensor where torch was imported, else an array.
Activation = Callable[[Any], Any]

_logger = logging.getLogger("rankrt")

_PRECISIONS: Mapping[str, Precision] = {"float32": "fp32", "float16": "fp16", "half": "fp16"}
# Options that say how torch is used, or that change the model; and what to do instead.
_REFUSED = {
    "modules": "a model comes from an artifact or a checkpoint; give its name",
    "processor_kwargs": "use max_length for the tokens of a pair",
    "config_kwargs": "the checkpoint's config is part of the artifact",
    "model_card_data": "rankrt writes no model cards from here",
    "keep_in_fp32_modules": "rankrt computes in the precision of the artifact's variant",
    "trust_remote_code": "rankrt runs no code that comes with a model",
    "local_files_only": "set HF_HUB_OFFLINE=1, which rankrt honours",
    "token": "set HF_TOKEN, which rankrt honours",
}
# What older releases called an option, and options that have no effect in sentence-transformers 6 either.
_RENAMED = {
    "sentences": "inputs",
    "activation_fct": "activation_fn",
    "default_activation_function": "activation_fn",
    "cache_dir": "cache_folder",
    "model_name": "model_name_or_path",
    "automodel_args": "model_kwargs",
}
_WITHOUT_EFFECT = ("num_workers", "convert_to_numpy", "convert_to_tensor", "apply_softmax")


class CrossEncoder:
    """Scores and ranks as sentence_transformers.CrossEncoder does, in fp32 unless `model_kwargs` names another dtype.

    `batch_size` bounds memory there; here the planner does, and the scores do not depend on it. `apply_softmax` has no
    effect on one score a pair, there as here. `prompt` stands before the query, or where a chat template has a place
    for it. A pair of more than `max_length` tokens is cut as there: the longer text first.

    `CrossEncoder.of(reranker)` takes a loaded reranker, with all options of `Reranker.load`, such as int8.
    """

    num_labels = 1
    prompts: dict[str, str]
    default_prompt_name: str | None
    activation_fn: Activation | None

    def __init__(
        self,
        model_name_or_path: str,
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        backend: str = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        **kwargs: Any,
    ) -> None:
        _check_rest("CrossEncoder", kwargs)
        if num_labels not in (None, 1):
            raise InputError(f"num_labels={num_labels!r}: an artifact has one score for a pair; leave it out")
        if backend not in ("torch", "onnx"):
            raise InputError(f"backend={backend!r}: the artifact says how a model runs; leave it out")
        reranker = Reranker.load(
            model_name_or_path,
            device=str(device) if device else "auto",
            precision=_precision_of(model_kwargs or {}),
            cache_dir=cache_folder,
            revision=revision,
            truncation="longest_first",
        )
        longest = reranker.artifact.manifest.template.max_length_within(reranker.artifact.manifest.max_length)
        self._begin(reranker.with_rules(max_length=longest if max_length is None else max_length))
        if prompts is not None:
            self.prompts = {**self.prompts, **prompts}
        if default_prompt_name is not None:
            self._check_prompt_name("default_prompt_name", default_prompt_name)
            self.default_prompt_name = default_prompt_name
        self.activation_fn = activation_fn

    @classmethod
    def of(cls, reranker: Reranker, *, activation_fn: Activation | None = None) -> "CrossEncoder":
        """Return the same interface over a loaded reranker, with its rules and precision."""
        made = cls.__new__(cls)
        made._begin(reranker)
        made.activation_fn = activation_fn
        return made

    def _begin(self, reranker: Reranker) -> None:
        prompt = reranker.artifact.manifest.template.prompt
        self._reranker = reranker
        self.prompts = {} if prompt is None else dict(prompt.instructions)
        # The artifact has the text of the default prompt, not its name.
        names = (name for name, text in self.prompts.items() if prompt and text == prompt.query_instruction)
        self.default_prompt_name = next(names, None)
        self.activation_fn = None

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self._reranker.device)

    @property
    def max_seq_length(self) -> int:
        """The most tokens of a pair."""
        return self._reranker.rules.max_length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        self._reranker = self._reranker.with_rules(max_length=length)

    max_length = max_seq_length

    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | None = None,
        pool: None = None,
        chunk_size: None = None,
        processing_kwargs: Mapping[str, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the score of each pair, (n_pairs,), float32; a number for one pair alone.

        It is an array, a tensor with `convert_to_tensor`, or a list of tensors without `convert_to_numpy`. Scores went
        through `activation_fn`, by default the model's own: the sigmoid, unless the checkpoint says another.
        `processing_kwargs` may have the most tokens of a pair: {"text": {"max_length": 256}}.
        """
        _check_rest("predict", kwargs)
        check_whole("batch_size", batch_size, least=1)
        self._check_place(device, pool, chunk_size)
        is_one = self.is_singular_input(inputs)
        pairs = pairs_of([inputs] if is_one else inputs)
        of_call = self if processing_kwargs is None else self._shortened(processing_kwargs)
        scores = of_call._scores(pairs, prompt_name, prompt, bool(show_progress_bar), activation_fn)
        if convert_to_tensor or not convert_to_numpy:
            option = "convert_to_tensor=True" if convert_to_tensor else "convert_to_numpy=False"
            tensor = _imported_torch(option).from_numpy(scores)
            return tensor[0] if is_one else tensor if convert_to_tensor else list(tensor)
        return scores[0] if is_one else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Activation | None = None,
        device: str | None = None,
        pool: None = None,
        chunk_size: None = None,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Return the `top_k` documents, best first, each as a dict with corpus_id, score and, if asked for, text."""
        _check_rest("rank", kwargs)
        check_whole("batch_size", batch_size, least=1)
        check_whole("top_k", top_k, none_is="all")
        self._check_place(device, pool, chunk_size)
        texts = documents_of(documents)
        pairs = pairs_of([(query, text) for text in texts])
        scores = self._scores(pairs, prompt_name, prompt, bool(show_progress_bar), activation_fn)
        best_first = np.argsort(-scores, kind="stable")[:top_k].tolist()
        hits: list[dict[str, Any]] = [{"corpus_id": i, "score": float(scores[i])} for i in best_first]
        if return_documents:
            for hit in hits:
                hit["text"] = texts[hit["corpus_id"]]
        return hits

    def is_singular_input(self, inputs: Any) -> bool:
        """Tell whether this is one pair, and not a container of pairs."""
        return is_one_pair(inputs)

    def __repr__(self) -> str:
        return f"CrossEncoder({self._reranker!r})"

    def _scores(
        self,
        pairs: Sequence[Pair],
        prompt_name: str | None,
        prompt: str | None,
        shows_progress: bool,
        activation_fn: Activation | None,
    ) -> Float32Array:
        reranker, activate = self._asking(self._prompt(prompt, prompt_name)), activation_fn or self._activation()
        with tqdm(total=len(pairs), desc="Pairs", disable=not shows_progress) as bar:
            logits = reranker.evaluate(pairs, on_progress=bar.update if shows_progress else None).logits
        return _activated(activate, logits)

    def _shortened(self, processing_kwargs: Mapping[str, Mapping[str, Any]]) -> "CrossEncoder":
        """Return the same with the length that a call gives. Raises InputError if it gives something else."""
        text = dict(processing_kwargs.get("text", {}))
        length, cuts = text.pop("max_length", self.max_seq_length), text.pop("truncation", True)
        if processing_kwargs.keys() - {"text"} or text or cuts is not True:
            raise InputError(
                f"processing_kwargs={dict(processing_kwargs)!r:.80}: only the length of a pair can be given here, as"
                ' {"text": {"max_length": 256, "truncation": True}}'
            )
        made = copy(self)
        made.max_seq_length = length
        return made

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str | None:
        """Return the words to put before, as there: `prompt`, or that of a name, or the default; None for none."""
        check_text("prompt", prompt, none_is="the default one")
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if prompt is not None or name is None:
            return prompt
        self._check_prompt_name("prompt_name", name)
        return self.prompts[name]

    def _check_prompt_name(self, option: str, name: object) -> None:
        if name not in self.prompts:
            raise InputError(f"{option}={name!r:.80} is not one of this model's prompts, {list(self.prompts)}")

    def _asking(self, prompt: str | None) -> Reranker:
        """Return the reranker with a prompt; None leaves the model's own."""
        if prompt is None:
            return self._reranker
        of_model = self._reranker.artifact.manifest.template.prompt
        if of_model is None or not prompt:
            return self._reranker.with_rules(query_instruction=prompt)
        return self._reranker.with_rules(instruction=prompt)

    def _activation(self) -> Activation | None:
        """Return what scores go through by default; None for nothing.

        Raises InputError for an artifact that does not say.
        """
        if self.activation_fn is not None:
            return self.activation_fn
        said = self._reranker.artifact.manifest.score
        if said is None:
            raise InputError(
                "this artifact is older than version 4 of the format and does not say what its scores go through by"
                " default; export it again, or give activation_fn, such as rankrt.scoring.sigmoid"
            )
        return None if said.activation == "identity" else sigmoid

    def _check_place(self, device: Any, pool: object, chunk_size: object) -> None:
        if pool is not None or chunk_size is not None or isinstance(device, list | tuple):
            raise InputError(
                "pool, chunk_size and a list of devices start processes there; here threads share one model. Run a"
                " process for each device, or `rankrt serve`"
            )
        if device is not None and str(device) not in (self.device, self.device.partition(":")[0]):
            raise DeviceError(f"device={str(device)!r}, but this model was loaded on {self.device}; load it there")


def _activated(activate: Activation | None, logits: Float32Array) -> Float32Array:
    """Return logits, (n_pairs,), after an activation that takes them as (n_pairs, 1), as there."""
    if activate is None or activate is sigmoid:
        return sigmoid(logits) if activate else logits
    given: Any = logits[:, None]
    if (torch := sys.modules.get("torch")) is not None:
        given = torch.from_numpy(given)
    scores = np.asarray(activate(given), np.float32)
    if scores.shape not in (given.shape, logits.shape):
        raise InputError(
            f"activation_fn made shape {scores.shape} of logits of shape {tuple(given.shape)}; it has to keep the shape"
        )
    return scores.reshape(logits.shape)


def _imported_torch(option: str) -> Any:
    if (torch := sys.modules.get("torch")) is None:
        raise InputError(f"{option} makes tensors, and this program has not imported torch; import it, or take arrays")
    return torch


def _precision_of(model_kwargs: Mapping[str, Any]) -> Precision:
    """Return the precision that a dtype of torch names; fp32 if none is given."""
    for name in model_kwargs:
        if name not in ("torch_dtype", "dtype"):
            raise InputError(f"model_kwargs has {name!r}, which says how torch runs a model; drop it")
    given = str(next(iter(model_kwargs.values()), "float32")).removeprefix("torch.")
    if given not in _PRECISIONS:
        raise InputError(
            f"model_kwargs names dtype {given!r}, expected one of {', '.join(_PRECISIONS)}. For int8 and others use"
            " CrossEncoder.of(Reranker.load(..., precision=...))"
        )
    return _PRECISIONS[given]


def _check_rest(call: str, options: Mapping[str, object]) -> None:
    """Raise InputError for an option that cannot be honoured. Of one without effect there, warn as there."""
    for name, value in options.items():
        if name in _WITHOUT_EFFECT and call != "CrossEncoder":
            _logger.warning("%s has no effect in %s, as in sentence-transformers; drop it", name, call)
        elif name in _RENAMED:
            raise InputError(f"{name} was renamed in sentence-transformers; use {_RENAMED[name]}")
        elif name not in _REFUSED:
            raise InputError(f"unknown option {name}")
        elif value not in (None, False):
            raise InputError(f"{name} cannot be honoured: {_REFUSED[name]}")
