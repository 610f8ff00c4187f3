"""Everything a change has to pass, step by step. Each step has a limit, and its time is printed.

python .ci/steps.py                     all steps; the first that fails ends the run
python .ci/steps.py check lean-3.13     these alone
python .ci/steps.py --list              their names

The cheap checks come first. Environments are made in the background, in the order in which steps need them, so that
processors have work while packages arrive. A test runs in the environment that it is for: the runtime without torch
and without the source tree on every Python, the server without torch on the newest, everything else in the environment
that `make` makes. Needs Python 3.11, make and a package index; what a machine lacks beside these is named and left out.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# A new environment is compiled as far as it is imported, which saves half of the time of an install with torch.
PIP = ("-m", "pip", "--quiet", "--no-input", "install", "--no-compile")
INSTALL_S = 900
# Files are handed to two processes: tests of one file share a server or an export, and most of them wait.
PYTEST = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--durations=15")
# Torch has one thread in each of them: two in both would be four on the two cores that CI has.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# Python 3.12 and newer count lines at little cost; 3.11, which the suite has, takes 1.7 times the processor time.
COVERED = ("--cov", "--cov-report=")
COVERED_PERCENT = 88  # of the runtime's lines that these steps can run, at least; 90 were measured


@dataclass(frozen=True, kw_only=True)
class Step:
    """Commands that run in a row. `needs` are environments; a step without commands is skipped for the reason."""

    name: str
    title: str
    limit_s: int
    commands: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    variables: Mapping[str, str] | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended, and its seconds; waiting for an environment counts."""

    step: Step
    said: str
    seconds: float = 0.0

    @property
    def has_failed(self) -> bool:
        """Whether the change does not pass."""
        return self.said.startswith("failed")


class Workshop:
    """A folder of environments, each made once, one at a time, in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._futures: dict[str, Future[None]] = {}
        self._builder = ThreadPoolExecutor(1)

    def python(self, name: str) -> str:
        """Return the interpreter of an environment."""
        return str(self.folder / name / ("Scripts" if os.name == "nt" else "bin") / "python")

    def start(self, names: Sequence[str]) -> None:
        """Begin to make environments, in this order."""
        for name in names:
            if name not in self._futures:
                self._futures[name] = self._builder.submit(self._make, name)

    def wait(self, names: Sequence[str]) -> None:
        """Wait until environments are there. Raises CalledProcessError if one cannot be made."""
        for name in names:
            self._futures[name].result()

    def close(self) -> None:
        """Make no more."""
        self._builder.shutdown(cancel_futures=True)

    @property
    def wheel(self) -> str:
        """The wheel that the environments without a source tree install."""
        return str(next((self.folder / "dist").glob("*.whl")))

    def _make(self, name: str) -> None:
        if name == "full":
            return self._call("make", "env", f"VENV={self.folder / 'full'}")
        if name in ("clients", "deploy", "fake-gpu", "portable", "site"):
            return self._call("make", f"env-{name}", f"VENV={self.folder / 'full'}")
        if name == "chromium" and browser() is None:
            return self._debian("chromium")
        if name == "proxy" and shutil.which("haproxy") is None:
            return self._debian("haproxy")
        if name == "promtool" and shutil.which("promtool") is None:
            return self._debian("prometheus")
        if name in ("chromium", "proxy", "promtool"):
            return None
        if name == "wheel":
            self._environment("build", sys.executable, "--group", "release")
            dist = str(self.folder / "dist")
            return self._call(self.python("build"), "-m", "build", "--no-isolation", "--outdir", dist, ".")
        if name == "server":
            python = interpreter(newest())
            assert python is not None, "it was found"
            return self._environment(name, python, f"{self.wheel}[cpu,server,otel]", "--group", "server-test")
        if name == "old":
            pins = ("transformers==4.57.6", "FlagEmbedding==1.4.2")
            return self._environment(name, sys.executable, ".[cpu,export]", *pins, "--group", "test")
        python = interpreter(name.removeprefix("lean-"))
        assert python is not None, "a step without an interpreter has no needs"
        return self._environment(name, python, f"{self.wheel}[cpu]", "--group", "lean-test")

    def _environment(self, name: str, python: str, *packages: str) -> None:
        self._call(python, "-m", "venv", str(self.folder / name))
        self._call(self.python(name), *PIP, "--upgrade", "pip>=25.1")
        self._call(self.python(name), *PIP, "--constraint", "constraints.txt", *packages)

    def _debian(self, package: str) -> None:
        """Install a package of Debian, if this is Debian. Without it the tests that need it are skipped."""
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            return
        try:
            self._call("apt-get", "update", "-qq")
            self._call("apt-get", "install", "-qq", "--yes", "--no-install-recommends", package)
        except subprocess.CalledProcessError:
            print(f"{package} cannot be installed here, so the tests that need it are skipped", flush=True)

    def _call(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=INSTALL_S, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-6000:], flush=True)
            raise subprocess.CalledProcessError(done.returncode, command)


def steps(shop: Workshop) -> list[Step]:
    """Return all steps, in their order."""
    full, server = shop.python("full"), shop.python("server")
    make = ("make", f"VENV={shop.folder / 'full'}")
    tests_of_project = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/test_*.py"))
    of_suite = "--ignore=tests/server --ignore-glob=tests/test_*.py"
    return [
        Step(
            name="wheel",
            title="the wheel and the source archive, as they would be published",
            limit_s=300,
            needs=("wheel",),
            commands=((shop.python("build"), "-m", "twine", "check", "--strict", f"{shop.folder}/dist/*"),),
        ),
        Step(
            name="check",
            title="ruff, clang-format and mypy, for this system, macOS, Windows and the newest Python",
            limit_s=1200,
            needs=("full",),
            commands=((*make, "check", "check-systems"),),
        ),
        Step(
            name="project",
            title="the wall, the rooms, the documentation, the examples",
            limit_s=600,
            needs=("full",),
            commands=((full, *PYTEST, *tests_of_project),),
        ),
        Step(
            name="site",
            title="the documentation's site, links checked",
            limit_s=300,
            needs=("site",),
            commands=((*make, "site"),),
        ),
        *(lean(shop, version) for version in PYTHONS),
        Step(
            name="server",
            title="the server alone, without torch, on the newest Python",
            limit_s=1200,
            needs=("wheel", "chromium", "server"),
            commands=((server, *PYTEST, *COVERED, "-rfEs", "--ignore=tests/server/test_clients.py", "tests/server"),),
            variables=covered(shop, "server"),
        ),
        Step(
            name="coverage",
            title="the share of the runtime's lines that the newest Python's steps ran",
            limit_s=120,
            needs=("server",),
            commands=(
                (server, "-m", "coverage", "combine", "-q"),
                (server, "-m", "coverage", "report", "--skip-covered", f"--fail-under={COVERED_PERCENT}"),
            ),
            variables={"COVERAGE_FILE": str(shop.folder / "coverage")},
        ),
        Step(
            name="suite",
            title="everything else, in the environment of `make test`",
            limit_s=2700,
            needs=("full",),
            commands=((*make, "test-suite", f"ARGUMENTS={of_suite}"),),
            variables=ONE_THREAD,
        ),
        Step(
            name="clients",
            title="the clients, frameworks and engines that people have, against the server and in process",
            limit_s=900,
            needs=("clients",),
            commands=((*make, "test-clients"),),
        ),
        Step(
            name="deploy",
            title="the chart, the image, compose and HAProxy, with the programs that read them",
            limit_s=600,
            needs=("full", "deploy", "proxy", "promtool"),
            commands=((*make, "test-deploy"),),
            variables=ONE_THREAD,
        ),
        Step(
            name="portable",
            title="the programs that load plain ONNX",
            limit_s=600,
            needs=("full", "portable"),
            commands=((*make, "test-portable"),),
        ),
        Step(
            name="demo", title="the demo, with the README's command", limit_s=300, needs=("full",),
            commands=((*make, "demo"),),
        ),
        Step(
            name="fake-gpu",
            title="the wheel for GPUs, on a CUDA that computes nothing",
            limit_s=600,
            needs=("full", "fake-gpu"),
            commands=((*make, "test-fake-gpu"),),
        ),
        Step(
            name="old",
            title="transformers 4.57 and FlagEmbedding 1.4",
            limit_s=1800,
            needs=("old",),
            commands=((shop.python("old"), *PYTEST, "tests/export", "tests/parity", "tests/tiny_reranker"),),
            variables=ONE_THREAD,
        ),
    ]  # fmt: skip


def lean(shop: Workshop, version: str) -> Step:
    """Return the step that tests the runtime alone on one Python: no torch, no transformers, no source tree."""
    name, title = f"lean-{version}", f"the runtime alone, without torch, Python {version}"
    if interpreter(version) is None:
        return Step(name=name, title=title, limit_s=0, reason=f"no Python {version} on this machine")
    python = shop.python(name)
    no_torch = "import importlib.util as u; assert u.find_spec('torch') is None, 'torch is in the lean environment'"
    is_covered = version == newest()
    tests = (python, *PYTEST, *(COVERED if is_covered else ()), "-m", "not slow", "tests/runtime", "tests/test_wall.py")
    return Step(
        name=name,
        title=title,
        limit_s=900,
        needs=("wheel", name),
        commands=((python, "-c", no_torch), tests),
        variables=covered(shop, name) if is_covered else None,
    )


@cache
def interpreter(version: str) -> str | None:
    """Return an interpreter of a version, if the machine has one."""
    candidates = [f"python{version}", *map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        candidates.insert(0, sys.executable)
    for candidate in candidates:
        # A shim of pyenv is on the path for versions that are not active, and fails.
        if shutil.which(candidate) and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def newest() -> str:
    """Return the newest version that the machine has."""
    return next(version for version in reversed(PYTHONS) if interpreter(version))


def covered(shop: Workshop, step: str) -> Mapping[str, str]:
    """Return the variables with which a step writes down the lines that it ran."""
    return {"COVERAGE_FILE": str(shop.folder / f"coverage.{step}"), "COVERAGE_CORE": "sysmon"}


def browser() -> str | None:
    """Return the browser that tests/server/playground would use."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def run(step: Step, shop: Workshop) -> Outcome:
    """Run a step, and print what it is, what it prints, and how it ended."""
    if step.reason:
        return Outcome(step=step, said=f"skipped: {step.reason}")
    print(f"\n== {step.name}: {step.title}", flush=True)
    started = time.monotonic()
    try:
        shop.wait(step.needs)
        waited = time.monotonic() - started
        said = _commands(step, started + waited + step.limit_s)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = f"failed: an environment cannot be made: {error}"
    seconds = time.monotonic() - started
    print(f"== {step.name}: {said}, {seconds:.0f} s", flush=True)
    return Outcome(step=step, said=said, seconds=seconds)


def _commands(step: Step, deadline: float) -> str:
    for command in step.commands:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | dict(step.variables or {}), stdin=subprocess.DEVNULL,
            start_new_session=os.name != "nt",
        )  # fmt: skip
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end(process)
            return f"failed: not ended after {step.limit_s} s"
        except BaseException:
            _end(process)
            raise
        if status:
            return f"failed: {Path(command[0]).name} ended with {status}"
    return "passed"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children; pytest's, told to abort, first print where each thread stands."""
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGABRT)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(outcomes: Sequence[Outcome], planned: Sequence[Step]) -> str:
    """Return the steps with their seconds, those that were not reached included."""
    rows = [(one.step.name, f"{one.seconds:6.0f}", one.said) for one in outcomes]
    rows += [(step.name, "     -", "not reached") for step in planned[len(outcomes) :]]
    rows.append(("all", f"{sum(one.seconds for one in outcomes):6.0f}", ""))
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {seconds} s  {said}".rstrip() for name, seconds, said in rows)


def main() -> int:
    """Run the steps that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--list", action="store_true", help="print the names of the steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankrt-ci-") as folder:
        shop = Workshop(Path(folder))
        known = {step.name: step for step in steps(shop)}
        if options.list:
            print("\n".join(known))
            return 0
        if unknown := [name for name in options.steps if name not in known]:
            parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(known)}")
        planned = [known[name] for name in options.steps or known]
        shop.start([name for step in planned for name in step.needs])
        outcomes: list[Outcome] = []
        try:
            for step in planned:
                outcomes.append(run(step, shop))
                if outcomes[-1].has_failed:
                    break
        finally:
            shop.close()
            print(f"\n{table(outcomes, planned)}", flush=True)
        return int(any(outcome.has_failed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
