"""A LoRA adapter merged into its base model, tensor by tensor as they are read.

W + scale * B @ A, where peft's adapter_config.json gives the scale: lora_alpha / r, or lora_alpha / sqrt(r) with
rslora. Nothing is written and no tensor is held: to the rest of the export a merged model is a checkpoint like any
other.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rankrt.arrays import Float32Array
from rankrt_export.errors import CheckpointError
from rankrt_export.weights import SafetensorsWeights, Weights, read

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says: the base model, and what the product of the two matrices is multiplied with."""

    base: str
    scale: float

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read the file. Raises CheckpointError for anything but a plain LoRA."""
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{folder / CONFIG} is not JSON: {error}") from error
        if (kind := config.get("peft_type")) != "LORA":
            raise CheckpointError(f"{folder / CONFIG} has peft_type = {kind!r}; only 'LORA' is implemented")
        for key in ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern"):
            if config.get(key):
                raise CheckpointError(
                    f"{folder / CONFIG} has {key}, which is not implemented: merge with peft, and export what it saves"
                )
        if not (base := config.get("base_model_name_or_path")):
            raise CheckpointError(f"{folder / CONFIG} names no base_model_name_or_path")
        if missing := [key for key in ("r", "lora_alpha") if not config.get(key)]:
            raise CheckpointError(f"{folder / CONFIG} has no {missing[0]}, without which an adapter has no scale")
        rank = float(config["r"])
        return cls(
            base=str(base), scale=float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
        )


class MergedWeights:
    """The base model's tensors, with the adapter's part added where it has one."""

    def __init__(self, base: Weights, folder: Path, config: AdapterConfig) -> None:
        self._base = base
        self._scale = np.float32(config.scale)
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(f"{folder} has no {WEIGHTS}: save the adapter again, with peft's save_pretrained")
        self._adapter = SafetensorsWeights([folder / WEIGHTS])
        self.files = (*base.files, *self._adapter.files)
        self.names = base.names
        self._check(folder, config)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._base.shape(name)

    def part(self, name: str, rows: slice) -> Float32Array:
        """Return some rows of a tensor."""
        part = self._base.part(name, rows)
        if (key := self._adapted.get(name)) is None:
            return part
        a, b = read(self._adapter, key + _A), read(self._adapter, key + _B)
        return part + self._scale * (b[rows] @ a)

    def blocks(self, name: str) -> Iterator[Float32Array]:
        """Yield a tensor in blocks of its first axis."""
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
        odd = sorted(name for name in self._adapter.names if not name.endswith((_A, _B)))
        if odd:
            raise CheckpointError(f"{folder / WEIGHTS} has {odd[0]}, which is no part of a LoRA")
        if not self._adapted:
            raise CheckpointError(f"{folder / WEIGHTS} has no tensors of a LoRA: it would change nothing")
        for name, key in self._adapted.items():
            n_out, n_in = self._adapter.shape(key + _B)[0], self._adapter.shape(key + _A)[1]
            found = self._base.shape(name) if name in self._base.names else None
            if found != (n_out, n_in):
                raise CheckpointError(
                    f"{folder} is an adapter of another model than {config.base}: its {name} is {n_out} x {n_in},"
                    f" the base model's {'x'.join(map(str, found)) if found else 'is not there'}"
                )
