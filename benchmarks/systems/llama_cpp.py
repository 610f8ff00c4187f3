"""llama.cpp's reranking through llama-cpp-python: rank pooling over a GGUF file, rows packed into a batch and masked.

A row is built as in llama-server: bos, query, eos, sep, passage, eos.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import llama_cpp

# A row has to fit into one physical batch, because its attention is computed whole. llama-server's default is 512
# tokens.
_SHIPPED_TOKENS, _MOST_TOKENS, _MOST_ROWS = 512, 2048, 64


class LlamaCpp:
    def __init__(self, model: str, n_threads: int) -> None:
        (file,) = Path(model).glob("*.gguf")
        self._llama = llama_cpp.Llama(
            str(file),
            embedding=True,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_RANK,
            n_ctx=_MOST_TOKENS,
            n_batch=_MOST_TOKENS,
            n_ubatch=_MOST_TOKENS,
            n_seq_max=_MOST_ROWS,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            verbose=False,
        )
        self.versions = {"llama-cpp-python": version("llama-cpp-python")}

    def score(self, query: str, passages: Sequence[str], max_length: int, batch_size: int | None = None) -> list[float]:
        question = self._tokens(query)
        rows = [self._row(question, self._tokens(passage), max_length) for passage in passages]
        return [logit for batch in _pack(rows, batch_size) for logit in self._logits(batch)]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=False, special=False)
        return tokens

    def _row(self, query: list[int], passage: list[int], max_length: int) -> list[int]:
        bos, eos = self._llama.token_bos(), self._llama.token_eos()
        length = min(max_length, _MOST_TOKENS)
        if max_length > _MOST_TOKENS and len(query) + len(passage) > length:
            raise ValueError(f"a row is longer than the {_MOST_TOKENS} tokens of a physical batch")
        return [bos, *query, eos, eos, *passage[: length - len(query) - 4], eos]

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        batch, context = self._llama._batch, self._llama._ctx
        batch.reset()
        for i, row in enumerate(rows):
            batch.add_sequence(row, i, True)
        context.kv_cache_clear()
        context.decode(batch)
        return [llama_cpp.llama_get_embeddings_seq(context.ctx, i)[0] for i in range(len(rows))]


def _pack(rows: Sequence[list[int]], batch_size: int | None) -> Iterator[list[list[int]]]:
    """Divide rows into batches by number, or by llama-server's number of tokens."""
    most_tokens = _MOST_TOKENS if batch_size else _SHIPPED_TOKENS
    batch: list[list[int]] = []
    for row in rows:
        is_full = len(batch) == (batch_size or _MOST_ROWS) or sum(map(len, batch)) + len(row) > most_tokens
        if batch and is_full:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def to_f16(checkpoint: Path, out: Path) -> None:
    """Convert with llama.cpp's own script: half-precision weights, which is its default."""
    _convert(checkpoint, out, "f16")


def to_q8(checkpoint: Path, out: Path) -> None:
    """Convert with blocks of 32 weights in 8 bits."""
    _convert(checkpoint, out, "q8_0")


def _convert(checkpoint: Path, out: Path, kind: str) -> None:
    out.mkdir()
    with tempfile.TemporaryDirectory() as name:
        script = _sources(Path(name)) / "convert_hf_to_gguf.py"
        arguments = [str(checkpoint), "--outfile", str(out / f"model-{kind}.gguf"), "--outtype", kind]
        status = subprocess.run([sys.executable, str(script), *arguments]).returncode
    if status:
        sys.exit(status)  # without a message: the script's last line is the reason


def build_server(python: Path, out: Path) -> None:
    """Compile llama-server from the same sources for this processor, as llama-cpp-python itself is compiled."""
    out.mkdir()
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"]
    with tempfile.TemporaryDirectory() as name:
        root, build = _sources(Path(name)), Path(name) / "build"
        subprocess.run(["cmake", "-S", str(root), "-B", str(build), *options, "-DLLAMA_OPENSSL=OFF"], check=True)
        command = ["cmake", "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count())]
        subprocess.run(command, check=True)
        (program,) = build.rglob("bin/llama-server")
        shutil.move(program, out / program.name)


def _sources(folder: Path) -> Path:
    """Unpack the llama.cpp that llama-cpp-python was built from, because wheels lack the script."""
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", str(folder), package], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        sources.extractall(folder, filter="data")
    (root,) = folder.glob("*/vendor/llama.cpp")
    return root
