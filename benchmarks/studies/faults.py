"""What can happen to a server's processes, files and limits: each is done to a running server, and undone.

A server that survives answers everything meanwhile, rightly or with a reason, and is as it was when it is over.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.harness.served import Server
from rankrt.host.child import child_command
from rankrt.server.telemetry.metrics import resident_bytes

# Rights and the limit of threads do not bind root, so the server is this user, whom no host should have.
_USER = 48_611
_AS_USER = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
_DISK_MB = 64


class CannotTry(Exception):
    """This host does not let a fault be made; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A server over files of its own, which may be harmed."""

    server: Server
    artifact: Path
    cache: Path
    is_other_user: bool
    has_own_disk: bool

    @property
    def worker(self) -> int:
        """A process that scores; waited for, if it is being started."""
        while not (workers := self.server.workers()):
            time.sleep(0.01)
        return workers[0]

    def n_descriptors(self) -> int:
        """Return how many the server and its workers have open at rest: the fewest of a second without requests."""
        counts = []
        for _ in range(20):
            counts.append(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (self.server.pid, *self.server.workers())))
            time.sleep(0.05)
        return min(counts)

    def server_mb(self) -> float:
        return resident_bytes(self.server.pid) / 1e6


@contextmanager
def staged(artifact: Path, *options: str) -> Iterator[Stage]:
    """Serve a copy of an artifact, as another user and with a cache on a disk of its own where this host allows it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rankrt-faults-")))
        folder.chmod(0o755)
        copy, cache = folder / "artifact", folder / "cache"
        shutil.copytree(artifact, copy)
        cache.mkdir()
        has_own_disk = _mount(cache, stack)
        if is_other_user := _may_be_another_user():
            for path in (folder, *folder.rglob("*")):
                os.chown(path, _USER, _USER)
        environment = {"RANKRT_CACHE": str(cache), "HOME": str(folder)}
        prefix = _AS_USER if is_other_user else []
        server = stack.enter_context(Server(str(copy), *options, prefix=prefix, environment=environment))
        yield Stage(server=server, artifact=copy, cache=cache, is_other_user=is_other_user, has_own_disk=has_own_disk)


@contextmanager
def killed(stage: Stage) -> Iterator[None]:
    """The kernel's out-of-memory killer, or a person."""
    os.kill(stage.worker, signal.SIGKILL)
    yield


@contextmanager
def crashed(stage: Stage) -> Iterator[None]:
    """A bug of the library that computes."""
    os.kill(stage.worker, signal.SIGSEGV)
    yield


@contextmanager
def paused(stage: Stage) -> Iterator[None]:
    """A disk that hangs, a debugger, a frozen container: the worker does nothing, and later works again."""
    worker = stage.worker
    os.kill(worker, signal.SIGSTOP)
    yield
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)


@contextmanager
def hung(stage: Stage) -> Iterator[None]:
    """The same, for good; the server has to end it."""
    os.kill(stage.worker, signal.SIGSTOP)
    yield


@contextmanager
def artifact_away(stage: Stage) -> Iterator[None]:
    """A volume that is gone while a worker has to load from it."""
    away = stage.artifact.rename(stage.artifact.with_name("away"))
    with killed(stage):
        yield
    away.rename(stage.artifact)


@contextmanager
def artifact_replaced(stage: Stage) -> Iterator[None]:
    """Another artifact in the same folder, with the same scores to compare, and nothing kept of the one of before."""
    manifest = stage.artifact / "rankrt.json"
    content = json.loads(manifest.read_bytes())
    content["producer"] = f"{content['producer'].partition(',')[0]}, {time.monotonic_ns()}"
    new = manifest.with_name("new")
    new.write_text(json.dumps(content))
    new.replace(manifest)
    shutil.rmtree(stage.cache / "prepared", ignore_errors=True)
    with killed(stage):
        yield


@contextmanager
def artifact_unreadable(stage: Stage) -> Iterator[None]:
    """Files that another user copied there, with rights of their own."""
    if not stage.is_other_user:
        raise CannotTry("needs root and setpriv, to serve as a user who may not read everything")
    stage.artifact.chmod(0)
    with killed(stage):
        yield
    stage.artifact.chmod(0o755)


@contextmanager
def weights_cut(stage: Stage) -> Iterator[None]:
    """A file that is overwritten in place while a worker has it mapped: SIGBUS, and then it is too short."""
    path = _mapped(stage)
    with path.open("r+b") as file:  # by its descriptor, as the server may put another file in its place
        content = file.read()
        os.ftruncate(file.fileno(), len(content) // 2 // 4096 * 4096)
        with killed(stage):
            yield
        file.seek(0)
        file.write(content)


@contextmanager
def disk_full(stage: Stage) -> Iterator[None]:
    """No room in the cache."""
    if not stage.has_own_disk:
        raise CannotTry("needs the right to mount a tmpfs of its own for the cache")
    filler = stage.cache / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with killed(stage):
        yield
    filler.unlink()


@contextmanager
def no_descriptors(stage: Stage) -> Iterator[None]:
    """`ulimit -n` is reached: no connection is accepted, and no worker can be connected to."""
    n_open = len(os.listdir(f"/proc/{stage.server.pid}/fd"))
    with _limited(stage, stage.server.pid, "nofile", n_open), killed(stage):
        yield


@contextmanager
def no_threads(stage: Stage) -> Iterator[None]:
    """`ulimit -u` is reached: no process and no thread can be started."""
    if not stage.is_other_user:
        raise CannotTry("needs root and setpriv, to serve as a user whom the limit binds")
    with _limited(stage, stage.server.pid, "nproc", 1), killed(stage):
        yield


@contextmanager
def no_memory(stage: Stage) -> Iterator[None]:
    """`ulimit -v` is reached in a worker: it has what it has, and gets no more."""
    worker = stage.worker
    n_bytes = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with _limited(stage, worker, "as", n_bytes):
        yield


@contextmanager
def small_files(stage: Stage) -> Iterator[None]:
    """`ulimit -f`: nothing longer than a page can be written."""
    with _limited(stage, stage.server.pid, "fsize", 4096), killed(stage):
        yield


@contextmanager
def reloaded(stage: Stage) -> Iterator[None]:
    """SIGHUP."""
    stage.server.process.send_signal(signal.SIGHUP)
    yield


Fault: TypeAlias = Callable[[Stage], AbstractContextManager[None]]
FAULTS: Mapping[str, Fault] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        killed,
        crashed,
        paused,
        artifact_away,
        artifact_replaced,
        artifact_unreadable,
        weights_cut,
        disk_full,
        no_descriptors,
        no_threads,
        no_memory,
        small_files,
        reloaded,
    )
}


def recovered_s(stage: Stage, most: float) -> float | None:
    """Return how long the server took until it was ready; None if it is not ready after `most` seconds."""
    started = time.monotonic()
    while (seconds := time.monotonic() - started) < most:
        if stage.server.is_ready:
            return seconds
        time.sleep(0.02)
    return None


@contextmanager
def _limited(stage: Stage, pid: int, what: str, most: int) -> Iterator[None]:
    """Lower a limit of a running process, as its own user: root may lack the right to do it for others."""
    prlimit = [*(_AS_USER if stage.is_other_user else []), "prlimit", f"--pid={pid}"]
    shown = subprocess.run(
        [*prlimit, f"--{what}", "--output=SOFT", "--noheadings", "--raw"], capture_output=True, text=True
    )
    if shown.returncode:
        raise CannotTry(f"needs prlimit: {shown.stderr.strip()}")
    subprocess.run([*prlimit, f"--{what}={most}:"], check=True)
    yield
    # A worker that could not continue is not there any more.
    subprocess.run([*prlimit, f"--{what}={shown.stdout.strip()}:"], capture_output=True)


def _mapped(stage: Stage) -> Path:
    """Return the largest file of the artifact or the cache that a worker has mapped."""
    folder = str(stage.artifact.parent)
    lines = Path(f"/proc/{stage.worker}/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[5] for line in lines if folder in line}
    if not (paths := [Path(name) for name in names if Path(name).is_file()]):
        raise CannotTry("the worker has no file of its model mapped")
    return max(paths, key=lambda path: path.stat().st_size)


def _may_be_another_user() -> bool:
    """Tell whether the server can be another user, who has to be able to read the environment."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    command = [*_AS_USER, *child_command("rankrt.cli.main", "serve", "--help")]
    return subprocess.run(command, capture_output=True).returncode == 0


def _mount(folder: Path, stack: ExitStack) -> bool:
    command: list[Any] = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "rankrt-faults", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        return False
    stack.callback(lambda: subprocess.run(["umount", "--lazy", folder], check=True))
    return True
