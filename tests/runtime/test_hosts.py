"""Hosts as they are: users without a home, files of another user, caches that cannot be read or written, full disks."""

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from rankrt import ArtifactError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key
from rankrt.files.rights import this_user

Output = pytest.CaptureFixture[str]

_RIGHTS_OF_ROOT = "dac_override,dac_read_search"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for path in (tmp_path, *tmp_path.rglob("*")):  # so that pytest can remove it
        path.chmod(0o755)


@pytest.fixture
def documents(tmp_path: Path) -> str:
    path = tmp_path / "documents.txt"
    path.write_text("two\n")
    return str(path)


def without_rights(arguments: Sequence[object], **options: object) -> "subprocess.CompletedProcess[str]":
    """Run rankrt as a user whom the modes of files bind, as they bind everyone but root."""
    command = [sys.executable, "-m", "rankrt.cli.main", *map(str, arguments)]
    if os.geteuid() == 0:
        if (setpriv := shutil.which("setpriv")) is None:
            pytest.skip("the tests run as root, whom no mode binds, and setpriv is not here to take that away")
        drop = ",".join(f"-{right}" for right in _RIGHTS_OF_ROOT.split(","))
        command = [setpriv, f"--bounding-set={drop}", f"--inh-caps={drop}", *command]
    return subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def rerank(artifact: Artifact, documents: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return without_rights(["rerank", artifact.folder, "--query", "one", "--documents", documents], **options)


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the user that a container runs as by number: no HOME, no line in /etc/passwd."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "RANKRT_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("without_home")
def test_without_a_home_models_are_loaded_without_the_cache_and_that_is_said_once(
    artifact: Artifact, caplog: pytest.LogCaptureFixture, capsys: Output
):
    for _ in range(2):
        with Reranker.load(artifact.folder) as reranker:
            assert reranker.score([("one", "two")]).tolist() == [3.0]
    reason = f"uid {os.geteuid()} has no home folder to keep a cache in. Name a folder with RANKRT_CACHE"
    assert caplog.text.count("not using the cache") == 1
    assert reason in caplog.text
    capsys.readouterr()
    assert main(["cache", "list"]) == 1
    assert capsys.readouterr().err == f"rankrt: error: {reason}\n"
    assert main(["doctor", str(artifact.folder)]) == 0
    assert f"note  cache      none, so loading takes longer: {reason}" in capsys.readouterr().out


@pytest.mark.usefixtures("without_home")
def test_without_a_home_a_checkpoint_says_what_it_needs_the_cache_for(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CacheError, match=r"is a checkpoint, which is exported into the cache: uid .* rankrt export"):
        Reranker.load(tmp_path)


@pytest.mark.usefixtures("without_home")
def test_without_a_home_a_hub_id_says_where_downloads_could_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """huggingface_hub would make a folder that is called ~ where the process runs."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"owner/name does not exist here, and uid .* HF_HOME"):
        Reranker.load("owner/name")
    assert list(tmp_path.iterdir()) == []


def test_a_user_with_a_name_is_called_by_it():
    assert this_user() == f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"


@pytest.mark.parametrize("name", ["", "rankrt.json", "tokenizer.json", "cpu-fp32.onnx", "points.fp32.data"])
def test_what_may_not_be_read_of_an_artifact_is_one_sentence(
    artifact: Artifact, cache: Path, documents: str, name: str
):
    path = artifact.folder / name
    path.chmod(0)
    process = rerank(artifact, documents)
    path.chmod(0o755)
    assert (process.returncode, process.stdout) == (1, "")
    error = process.stderr.splitlines()[-1]
    assert error.startswith(f"rankrt: error: {path} cannot be read as {this_user()}: permission denied.")
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("command", ["info", "doctor"])
def test_info_and_doctor_say_which_file_may_not_be_read(artifact: Artifact, cache: Path, command: str):
    (artifact.folder / "rankrt.json").chmod(0)
    process = without_rights([command, artifact.folder])
    assert process.returncode == 1
    assert "rankrt.json cannot be read as" in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


def test_a_cache_that_another_user_keeps_to_himself_is_done_without(artifact: Artifact, cache: Path, documents: str):
    Reranker.load(artifact.folder).close()
    (cache / "prepared").chmod(0)
    process = rerank(artifact, documents)
    assert process.returncode == 0
    assert process.stderr.count("\n") == 1
    assert f"not using the cache, so loading takes longer and memory is not shared: the cache {cache}" in process.stderr
    listing = without_rights(["cache", "list"])
    assert (listing.returncode, "unreadable" in listing.stdout) == (0, True)
    (finding,) = (
        found for found in json.loads(without_rights(["doctor", "--json"]).stdout) if found["name"] == "cache"
    )
    assert finding["verdict"] == "note"
    assert "cannot be read as" in finding["detail"]


def test_a_cache_below_a_folder_of_another_user_is_done_without(
    artifact: Artifact, cache: Path, tmp_path: Path, documents: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "private").mkdir(mode=0)
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "private" / "cache"))
    process = rerank(artifact, documents)
    assert (process.returncode, process.stderr.count("\n")) == (0, 1)
    assert "not using the cache" in process.stderr
    for arguments in (["cache", "list"], ["cache", "prune"], ["cache", "clear"], ["doctor"]):
        process = without_rights(arguments)
        assert (process.returncode, "Traceback" in process.stderr) == (0, False)


def test_a_filled_cache_that_may_only_be_read_is_used(artifact: Artifact, cache: Path, documents: str):
    Reranker.load(artifact.folder).close()
    for path in (*cache.rglob("*"), cache):
        path.chmod(0o555 if path.is_dir() else 0o444)
    process = rerank(artifact, documents)
    assert (process.returncode, process.stderr) == (0, "")
    doctor = without_rights(["doctor"])
    assert f"{this_user()} cannot write it" in doctor.stdout


def test_an_empty_cache_that_may_only_be_read_is_done_without(artifact: Artifact, cache: Path, documents: str):
    cache.mkdir()
    cache.chmod(0o555)
    process = rerank(artifact, documents)
    assert (process.returncode, process.stdout.split()[:2]) == (0, ["1", "3.0000"])
    assert process.stderr.count("permission denied") == 1


def test_a_damaged_entry_that_may_not_be_removed_is_done_without(artifact: Artifact, cache: Path, documents: str):
    Reranker.load(artifact.folder).close()
    (graph,) = cache.glob("prepared/*/model.onnx")
    graph.write_bytes(b"x" * graph.stat().st_size)
    for path in (*cache.rglob("*"), cache):
        path.chmod(0o555 if path.is_dir() else 0o666)
    process = rerank(artifact, documents)
    assert (process.returncode, process.stdout.split()[:2]) == (0, ["1", "3.0000"])
    assert "model.onnx has other bytes than were written" in process.stderr
    assert "not using the cache" in process.stderr


@pytest.mark.parametrize("n_bytes", [0, 100, 500])
def test_on_a_full_disk_models_are_loaded_without_the_cache(
    artifact: Artifact, cache: Path, documents: str, n_bytes: int
):
    """The limit on the size of files ends writing as a full disk does, at any place."""
    limit: Callable[[], None] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))  # noqa: E731
    process = rerank(artifact, documents, preexec_fn=limit)
    assert (process.returncode, process.stdout.split()[:2]) == (0, ["1", "3.0000"])
    assert "not using the cache" in process.stderr
    assert "Traceback" not in process.stderr
    assert not [item for item in HostCache().items() if item.kind == "prepared" and item.state != "lock"]


@pytest.mark.parametrize(("umask", "of_folders", "of_files"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_what_the_cache_writes_is_shared_as_the_umask_says(cache: Path, umask: int, of_folders: int, of_files: int):
    before = os.umask(umask)
    try:
        key = Key(kind="prepared", name="one", variant="cpu-fp32", depends_on={})
        made = HostCache().make(key, lambda folder: (folder / "file").write_text("content")).folder
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (cache, cache / "prepared", made)} == {of_folders}
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {of_files}


@pytest.mark.parametrize("source", ["x" * 300, "a/" + "x" * 5000, "a\0b", "~no_such_user_here/model"])
def test_what_can_be_no_path_is_one_sentence(source: str, capsys: Output):
    with pytest.raises(ArtifactError):
        Reranker.load(source)
    assert main(["info", source]) == 1
    assert capsys.readouterr().err.startswith("rankrt: error: ")
