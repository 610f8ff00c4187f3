"""The record of a run: measurements, model, machine and versions.

Knows the form and the file, and measures nothing. `record.schema.json` is this form as a JSON schema.
"""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from rankrt.host.cpu import this_machine

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("runtime", "export")

# How a system gets its text: in one call with its own defaults, or sorted by length in its fastest batch size.
Given: TypeAlias = Literal["as shipped", "at its best"]
# A row's suite, system, case and way to give text.
Key: TypeAlias = tuple[str, str, str, Given]


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU that systems computed on; gemm_tflops is its rate at large products in half precision, measured."""

    device: str
    name: str
    driver: str
    memory_gb: float
    gemm_tflops: float | None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The host, and the systems' share of it."""

    processor: str
    architecture: str
    instructions: tuple[str, ...]
    system: str
    python: str
    memory_gb: float
    n_cores: int
    limited_by: str
    n_threads: int
    cpus: tuple[int, ...]
    accelerator: Accelerator | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint. The hash is of its files; max_length is in tokens."""

    name: str
    sha256: str
    architecture: str
    n_parameters: int
    max_length: int


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """The text that was scored."""

    name: str
    sha256: str


class System(msgspec.Struct, frozen=True, kw_only=True):
    """The versions of a system's parts, as far as it could be opened."""

    versions: dict[str, str]
    conversion: str | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, or the reason for none.

    size              the case in numbers: n_passages, n_tokens, n_threads, offered_per_s, ...
    metrics           the results, with the unit in the name; null if a value has no meaning (a p99 of 5 calls)
    seconds           each call's time
    baseline_seconds  the baseline's time right after each of them
    """

    suite: str
    system: str
    case: str
    given: Given = "as shipped"
    size: dict[str, float] = {}
    metrics: dict[str, float | None] = {}
    seconds: tuple[float, ...] = ()
    baseline_seconds: tuple[float, ...] = ()
    reason: str | None = None

    @property
    def key(self) -> Key:
        """The identity of the measurement across runs."""
        return self.suite, self.system, self.case, self.given


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier run whose rows the record keeps."""

    made: str
    options: dict[str, Any]
    is_complete: bool


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, or several runs of the same model on the same machine. The earlier ones are its parts."""

    schema_version: Literal[1] = 1
    made: str
    commit: str
    model: Model
    machine: Machine
    text: Text
    baseline: str
    options: dict[str, Any]
    systems: dict[str, System]
    rows: tuple[Row, ...]
    is_complete: bool
    parts: tuple[Part, ...] = ()

    def of(self, suite: str) -> list[Row]:
        """Return a suite's rows."""
        return [row for row in self.rows if row.suite == suite]


class RecordError(Exception):
    """A file is not a record of a run, or not of the expected run."""


def read_record(path: Path) -> Record:
    """Read a record. Raises RecordError if it is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise RecordError(f"{path} is not a record of `python -m benchmarks.run`: {error}") from error


def write_record(record: Record, path: Path) -> None:
    """Write a record whole or not at all, with one row a line, so that records can be compared as text."""
    head = msgspec.to_builtins(record)
    rows = ",\n    ".join(msgspec.json.encode(row).decode() for row in head.pop("rows"))
    text = msgspec.json.format(msgspec.json.encode(head), indent=2).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(f'{text[:-2]},\n  "rows": [\n    {rows}\n  ]\n}}\n', encoding="utf-8")
    partial.replace(path)


def continue_record(record: Record, earlier: Record) -> Record:
    """Return a record with the rows of an earlier one. Of rows that both have, the new ones count.

    Raises RecordError if model, text, code, machine or yardsticks differ, because a table could not compare the rows.
    """
    for name, before, after in zip(_YARDSTICKS, _yardsticks(earlier), _yardsticks(record), strict=True):
        if before != after:
            raise RecordError(f"the record to continue was made with another {name} ({before}, now {after})")
    part = Part(made=earlier.made, options=earlier.options, is_complete=earlier.is_complete)
    rows = {row.key: row for row in (*earlier.rows, *record.rows)}
    return msgspec.structs.replace(
        record,
        systems=earlier.systems | record.systems,
        rows=tuple(rows.values()),
        parts=(*earlier.parts, part),
    )


_YARDSTICKS = ("model", "text", "commit", "machine", "baseline", "reference")


def _yardsticks(record: Record) -> tuple[Any, ...]:
    machine, reference = record.machine, record.options.get("reference")
    return record.model.sha256, record.text.sha256, record.commit, machine, record.baseline, reference


def schema() -> str:
    """Return the form of a record as a JSON schema, for other languages."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Record)), indent=2).decode() + "\n"


def now() -> str:
    """Return the time in the form of records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str:
    """Return the last commit that changed rankrt, with a + after later changes; "unknown" outside a clone."""
    try:
        head = _git("log", "-1", "--format=%h", "--", *_PACKAGES)
        return head + "+" * bool(_git("status", "--porcelain", "--untracked-files=no", "--", *_PACKAGES))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_machine(n_threads: int | None = None, cpus: tuple[int, ...] = ()) -> Machine:
    """Return this host and the used part of it, by default all usable cores, unpinned."""
    machine = this_machine()
    return Machine(
        processor=machine.processor,
        architecture=machine.architecture,
        instructions=machine.instructions,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        memory_gb=round(memory_bytes("MemTotal") / 1e9, 1),
        n_cores=machine.cores.n,
        limited_by=machine.cores.limited_by,
        n_threads=n_threads or machine.cores.n,
        cpus=cpus,
    )


def describe_accelerator(device: str, gemm_tflops: float | None) -> Accelerator:
    """Return the GPU of a device such as "cuda:1", as its driver's nvidia-smi names it.

    Raises RecordError if it is missing, because a record of a GPU names it.
    """
    index = device.partition(":")[2] or "0"
    asked = ["nvidia-smi", "-i", index, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RecordError(f"--device {device}: nvidia-smi does not show that GPU ({error})") from error
    name, driver, memory_mib = done.stdout.strip().split(", ")
    memory_gb = round(float(memory_mib) * 2**20 / 1e9, 1)
    return Accelerator(device=device, name=name, driver=driver, memory_gb=memory_gb, gemm_tflops=gemm_tflops)


def memory_bytes(name: str) -> int:
    """Return a line of /proc/meminfo."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
