"""The measured model, random and of bge-reranker-v2-m3's shape, with its artifact and the size of measurements.

The files stay in the session's folder, so a second call measures the same model. Only making them needs PyTorch.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import Line
from benchmarks.harness.operations import Shape
from rankrt.artifact.manifest import Artifact, open_artifact
from rankrt.artifact.precisions import Precision
from rankrt.backends.gpu import GpuBackend
from rankrt.host.device import Device
from rankrt.host.host import this_host
from rankrt.loading.choose import place_on_gpu
from rankrt.loading.open import open_gpu
from rankrt.loading.placement import Placement

CUDA = Device("cuda")
TINY_CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny_reranker" / "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of the model and of measurements.

    encoder       the fields of an XLMRobertaConfig
    decoders      the fields of a transformers configuration by the name of its family
    mixes         the rows of the speed stages; systems other than rankrt score only the first few
    sweep         the most tokens of a run
    n_tokens      the tokens of a measurement
    n_square      the side of the matrices that measure the card's best rate
    seconds       the least time of a measurement
    """

    encoder: Mapping[str, Any]
    decoders: Mapping[str, Mapping[str, Any]]
    mixes: tuple[str, ...]
    sweep: tuple[int, ...]
    n_tokens: int
    n_square: int
    seconds: float

    @property
    def shape(self) -> Shape:
        return Shape.of(self.encoder)

    @property
    def n_ids(self) -> int:
        return int(self.encoder["vocab_size"])


_XLMR = {
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "num_labels": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_DECODER = {"max_position_embeddings": 8192, "num_labels": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
# The entries of the tiny model's tokenizer, which all models have.
_N_PIECES = 24_000
# Decoders have small vocabularies, because a row looks up few entries. v2-gemma has 4 of its 18 layers, because all of
# them take longer to write than to measure.
FULL = Size(
    encoder=_XLMR
    | {
        "vocab_size": 250_002,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    decoders={
        "Qwen3": _DECODER
        | {
            "vocab_size": _N_PIECES,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
        },
        "Gemma": _DECODER
        | {
            "vocab_size": _N_PIECES,
            "hidden_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "intermediate_size": 16_384,
        },
    },
    mixes=("passages", "512", "128", "documents", "8192"),
    sweep=(4096, 8192, 16_384, 32_768, 65_536),
    n_tokens=400_000,
    n_square=8192,
    seconds=1.0,
)


def _encoder(n_layers: int, hidden: int, n_heads: int, n_words: int) -> Size:
    """Return the size of another encoder, whose rows have at most 512 tokens."""
    shape = {
        "vocab_size": n_words,
        "hidden_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "intermediate_size": 4 * hidden,
    }
    return replace(FULL, encoder=_XLMR | shape, decoders={}, mixes=FULL.mixes[:3])


SMALL = Size(
    encoder=_XLMR
    | {
        "vocab_size": _N_PIECES,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    },
    decoders={
        "Qwen3": _DECODER
        | {
            "vocab_size": _N_PIECES,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "intermediate_size": 96,
        }
    },
    mixes=("passages", "32"),
    sweep=(128, 512),
    n_tokens=2000,
    n_square=128,
    seconds=0.01,
)
# By the name of the model that has the shape. The weights are random.
SIZES: Mapping[str, Size] = {
    "bge-reranker-v2-m3": FULL,
    "bge-reranker-base": _encoder(12, 768, 12, 250_002),
    "ms-marco-MiniLM-L6": _encoder(6, 384, 12, 30_522),
    "small": SMALL,
}


class Subject:
    """The model in a folder. Makes a missing part when it is first needed."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size = size
        self.folder = folder

    @property
    def checkpoint(self) -> Path:
        """The model for PyTorch, in fp32."""
        return self._made("checkpoint", lambda folder: _checkpoints().write_encoder(self.size.encoder, folder))

    @property
    def artifact(self) -> Artifact:
        """The model for rankrt, in fp32 and fp16 for CUDA."""
        return open_artifact(
            self._made("artifact", lambda folder: _checkpoints().export_for_cuda(self.checkpoint, folder))
        )

    @property
    def tiny(self) -> Artifact:
        """The trained model that comes with the project."""
        return open_artifact(self._made("tiny", lambda folder: _checkpoints().export_for_cuda(TINY_CHECKPOINT, folder)))

    def decoder(self, family: str) -> Artifact:
        """A random decoder, in fp16 for CUDA."""

        def make(folder: Path) -> None:
            checkpoint = self._made(
                f"{family}-checkpoint", lambda to: _checkpoints().write_decoder(family, self.size.decoders[family], to)
            )
            _checkpoints().export_for_cuda(checkpoint, folder, ("fp16",), prompt="flagembedding")

        return open_artifact(self._made(family, make))

    def backend(self, precision: Precision) -> GpuBackend:
        """Load the model as a user would."""
        return open_gpu(placed(self.artifact, precision))

    def clear(self) -> None:
        """Remove the encoder's checkpoint and artifact."""
        for name in ("checkpoint", "artifact"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return a folder. Makes it if it is missing, and again if an earlier attempt was cut off."""
        path, partial = self.folder / name, self.folder / f"{name}.partial"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(path)
        return path


def make(subject: Subject) -> Iterator[Line]:
    """Write the checkpoint and the artifact again."""
    subject.clear()
    for name in ("checkpoint", "artifact"):
        began = time.perf_counter()
        getattr(subject, name)
        seconds = time.perf_counter() - began
        n_bytes = sum(file.stat().st_size for file in (subject.folder / name).rglob("*") if file.is_file())
        yield Line(name=name, figures={"s": seconds, "gb": n_bytes / 1e9})


def _checkpoints() -> Any:
    """Import the module that needs PyTorch. Only a model that is already there can be measured without it."""
    return import_module("benchmarks.gpu.checkpoints")


def placed(artifact: Artifact, precision: Precision) -> Placement:
    """Return the variant of an artifact for CUDA in a precision. Raises DeviceError."""
    return place_on_gpu(artifact, CUDA, precision, this_host())[0]
