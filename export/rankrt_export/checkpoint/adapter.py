"""A LoRA adapter merged into its base model, tensor by tensor as they are read.

W + scale * B @ A, where peft's adapter_config.json gives the scale: lora_alpha / r, or lora_alpha / sqrt(r) with
rslora. Nothing is written and no tensor is held: to the rest of the export a merged model is a checkpoint like any
other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rankrt.arrays import Float32Array
from rankrt_export.checkpoint.fields import read_object
from rankrt_export.checkpoint.weights import SafetensorsWeights, Weights, read
from rankrt_export.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD = "score.weight"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_NOT_IMPLEMENTED = (
    *("use_dora", "alpha_pattern", "rank_pattern", "layer_replication", "fan_in_fan_out", "lora_bias", "bias"),
    *("trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says: the base model, what the product of the two matrices is multiplied with.

    has_head  whether it was trained to give a score, by a head of its own
    """

    base: str
    base_revision: str | None
    scale: float
    has_head: bool

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read the file. Raises CheckpointError for anything but a LoRA, which may bring a head."""
        path, config = folder / CONFIG, read_object(folder / CONFIG)
        if (kind := config.get("peft_type")) != "LORA":
            raise CheckpointError(f"{path} has peft_type = {kind!r}; only 'LORA' is implemented")
        for key in _NOT_IMPLEMENTED:
            if config.get(key) not in (None, False, "none", {}, []):
                raise CheckpointError(
                    f"{path} has {key}, which is not implemented: merge with peft, and export what it saves"
                )
        if not isinstance(base := config.get("base_model_name_or_path"), str) or not base:
            raise CheckpointError(f"{path} names no base_model_name_or_path")
        for key in ("r", "lora_alpha"):
            if not isinstance(config.get(key), int | float) or not config[key] > 0:
                raise CheckpointError(f"{path} has no {key}, without which an adapter has no scale")
        rank, revision = float(config["r"]), config.get("revision")
        return cls(
            base=base,
            base_revision=revision if isinstance(revision, str) else None,
            scale=float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank),
            has_head=config.get("task_type") == "SEQ_CLS",
        )


class MergedWeights:
    """The base model's tensors, with the adapter's part added where it has one, and its head."""

    def __init__(self, base: Weights, folder: Path, config: AdapterConfig) -> None:
        self._base = base
        self._scale = np.float32(config.scale)
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder} has no {WEIGHTS}: save the adapter again, with peft's save_pretrained")
        self._adapter = SafetensorsWeights([folder / WEIGHTS])
        self.files = (*base.files, *self._adapter.files)
        # What peft trains whole and not as a LoRA: of a ...ForSequenceClassification the head.
        self._whole = {HEAD: _PREFIX + HEAD} if config.has_head and _PREFIX + HEAD in self._adapter.names else {}
        self.names = base.names | self._whole.keys()
        self._check(folder, config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._adapter.shape(self._whole[name]) if name in self._whole else self._base.shape(name)

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        if name in self._whole:
            return self._adapter.part(self._whole[name], rows)
        part = self._base.part(name, rows)
        if (key := self._adapted.get(name)) is None:
            return part
        a, b = read(self._adapter, key + _A), read(self._adapter, key + _B)
        return part + self._scale * (b[rows] @ a)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
        if name in self._whole:
            yield from self._adapter.blocks(self._whole[name])
            return
        start = 0
        for block in self._base.blocks(name):
            stop = start + len(block)
            yield block if name not in self._adapted else self.part(name, slice(start, stop))
            start = stop

    @cached_property
    def _adapted(self) -> Mapping[str, str]:
        """The names in the adapter, without their ends, by those of the tensors that they belong to."""
        keys = [name.removesuffix(_A) for name in self._adapter.names if name.endswith(_A)]
        return {f"{key.removeprefix(_PREFIX)}.weight": key for key in keys}

    def _check(self, folder: Path, config: AdapterConfig) -> None:
        whole = set(self._whole.values())
        if odd := sorted(name for name in self._adapter.names - whole if not name.endswith((_A, _B))):
            raise CheckpointError(
                f"{folder / WEIGHTS} has {odd[0]}, which is neither part of a LoRA nor a head for one score: merge with"
                " peft, and export what it saves"
            )
        if config.has_head and not self._whole:
            raise CheckpointError(f"{folder / CONFIG} has task_type = 'SEQ_CLS', but {WEIGHTS} has no {HEAD}")
        if not self._adapted:
            raise CheckpointError(f"{folder / WEIGHTS} has no tensors of a LoRA: it would change nothing")
        for name, key in self._adapted.items():
            if key + _B not in self._adapter.names:
                raise CheckpointError(f"{folder / WEIGHTS} has {key + _A} without {key + _B}")
            n_out, n_in = self._adapter.shape(key + _B)[0], self._adapter.shape(key + _A)[1]
            found = self._base.shape(name) if name in self._base.names else None
            if found != (n_out, n_in):
                raise CheckpointError(
                    f"{folder} is an adapter of another model than {config.base}: its {name} is {n_out} x {n_in},"
                    f" the base model's {'x'.join(map(str, found)) if found else 'is not there'}"
                )
