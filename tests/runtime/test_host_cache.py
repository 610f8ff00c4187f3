"""The host's cache: what is in it, who uses it, what is removed when, and what is never removed."""

import json
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock

from rankrt import InputError, Reranker
from rankrt.artifact.manifest import Artifact
from rankrt.cli.main import main
from rankrt.errors import CacheError
from rankrt.files.cache import HostCache, Key, parse_size
from rankrt.files.seals import SMALL_BYTES, Seal

Output = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def key(name: str, **depends_on: str) -> Key:
    return Key(kind="prepared", name=name, variant="cpu-fp32", depends_on=depends_on)


def add(name: str, n_bytes: int = 1000, used_at: float | None = None, **depends_on: str) -> Path:
    """Put an entry of that size into the cache."""
    made = HostCache().make(key(name, **depends_on), lambda new: (new / "file").write_bytes(b"x" * n_bytes)).folder
    if used_at is not None:
        os.utime(made / "entry.json", (used_at, used_at))
    return made


def names() -> list[str]:
    return [item.name for item in HostCache().items() if item.state != "lock"]


def test_an_entry_is_made_once_and_found_again(folder: Path):
    calls: list[Path] = []

    def write(new: Path) -> None:
        calls.append(new)
        (new / "file").write_text("content")

    for _ in range(2):
        assert (HostCache().make(key("one"), write).folder / "file").read_text() == "content"
    assert len(calls) == 1


@pytest.mark.parametrize(("text", "n_bytes"), [
    ("20GB", 20 * 10**9), ("500 MB", 5 * 10**8), ("1.5tb", 15 * 10**11), ("10GiB", 10 * 2**30), ("4096", 4096),
    ("2K", 2000), ("0", 0), ("7b", 7),
])  # fmt: skip
def test_a_size_is_read_as_people_write_it(text: str, n_bytes: int):
    assert parse_size(text, "RANKRT_CACHE_MAX") == n_bytes


@pytest.mark.parametrize("text", ["much", "-1GB", "GB", "1e9", "20 gigabytes", "1,5GB", "20 20", "nan"])
def test_what_is_not_a_size_is_refused_with_the_variable(
    text: str, monkeypatch: pytest.MonkeyPatch, artifact: Artifact
):
    monkeypatch.setenv("RANKRT_CACHE_MAX", text)
    with pytest.raises(InputError, match=r"RANKRT_CACHE_MAX='.*' is not a size; write it as 20GB"):
        Reranker.load(artifact.folder)


def test_a_home_folder_is_expanded_where_no_shell_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RANKRT_CACHE", "~/cache")
    assert HostCache().folder == tmp_path / "cache"
    monkeypatch.setenv("RANKRT_CACHE", "~no_such_user_here/cache")
    with pytest.raises(CacheError, match=r"RANKRT_CACHE=~no_such_user_here/cache cannot be used: .*absolute folder"):
        HostCache()


def test_every_kind_of_thing_in_the_cache_is_listed(folder: Path):
    add("current", engine="tokenizers " + __import__("tokenizers").__version__)
    add("old engine", engine="tokenizers 0.0.1")
    newer = add("newer format")
    content = json.loads((newer / "entry.json").read_text()) | {"format": 99, "producer": "rankrt 9.0"}
    (newer / "entry.json").write_text(json.dumps(content))
    (add("damaged entry") / "entry.json").write_text("{")
    (folder / "prepared" / "before" / "x").mkdir(parents=True)
    (folder / "prepared" / "before" / "prepared.json").write_text("{}")
    (folder / "exported" / ".unfinished-tiny-1234-0a0a0a0a").mkdir(parents=True)
    (folder / "gpu" / "timings").mkdir(parents=True)
    found = {(item.kind, item.state): item.remark for item in HostCache().items() if item.state != "lock"}
    assert found.keys() == {
        ("prepared", "ready"),
        ("prepared", "stale"),
        ("prepared", "unreadable"),
        ("exported", "unfinished"),
        ("gpu", "ready"),
    }
    remarks = {item.name: item.remark for item in HostCache().items()}
    assert remarks["old engine"].startswith("made for tokenizers 0.0.1; ")
    assert remarks["newer format"] == "written by rankrt 9.0, in format 99 of the cache"
    assert remarks["before"] == "of an older version of rankrt"


def test_prune_removes_what_nothing_will_use_and_keeps_the_rest(folder: Path):
    add("current")
    add("old engine", engine="tokenizers 0.0.1")
    (add("damaged") / "file").write_bytes(b"y" * 1000)
    (add("no entry any more") / "entry.json").write_text("{")
    for path in ("prepared/before", "exported/.unfinished-tiny-1234-0a0a0a0a"):
        (folder / path).mkdir(parents=True)
        (folder / path / "prepared.json").write_text("{}")
    removed = HostCache().prune()
    assert {item.name for item in removed} > {"old engine", "damaged", "before"}
    assert names() == ["current"]
    assert sorted(path.name for path in (folder / "prepared").iterdir()) == [key("current").folder_name]
    assert not list((folder / "exported").iterdir())


def test_what_a_living_process_makes_is_not_a_leftover(folder: Path):
    made = folder / "prepared" / ".unfinished-tiny-1234-0a0a0a0a"
    made.mkdir(parents=True)
    with FileLock(folder / "prepared" / ".tiny-1234.lock"):
        assert HostCache().prune() == []
        assert made.exists()
    assert [item.path for item in HostCache().prune() if item.state == "unfinished"] == [made]


def test_what_a_dead_process_left_goes_when_its_entry_is_made(folder: Path):
    leftover = folder / "prepared" / f".unfinished-{key('one').folder_name}-0a0a0a0a"
    leftover.mkdir(parents=True)
    add("one")
    assert not leftover.exists()


def test_above_the_limit_the_least_recently_used_go_when_something_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    now = time.time()
    for age, name in enumerate(["new", "old", "older", "oldest"]):
        add(name, 100_000, used_at=now - age * 100)
    monkeypatch.setenv("RANKRT_CACHE_MAX", "350KB")
    add("newest", 100_000)
    assert names() == ["new", "newest", "old"]


def test_use_makes_an_entry_young_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b", "c"):
        add(name, 100_000, used_at=1000.0)
    HostCache().find(key("b"))
    monkeypatch.setenv("RANKRT_CACHE_MAX", "250KB")
    add("d", 100_000)
    assert names() == ["b", "d"]


def test_prune_keeps_to_the_limit_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for age, name in enumerate(["a", "b"]):
        add(name, 100_000, used_at=1000.0 - age)
    monkeypatch.setenv("RANKRT_CACHE_MAX", "150KB")
    assert [item.name for item in HostCache().prune() if item.n_bytes] == ["b"]


def _load_and_wait(folder: Path, is_loaded: Event, is_enough: Event) -> None:
    with Reranker.load(folder):
        is_loaded.set()
        is_enough.wait(60)


def test_what_another_process_uses_is_never_removed(
    folder: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: Output
):
    """A server's worker that ends comes back from the same files."""
    context = multiprocessing.get_context("spawn")
    is_loaded, is_enough = context.Event(), context.Event()
    process = context.Process(target=_load_and_wait, args=(artifact.folder, is_loaded, is_enough))
    process.start()
    try:
        assert is_loaded.wait(60)
        monkeypatch.setenv("RANKRT_CACHE_MAX", "1KB")
        add("other", 100_000)
        assert main(["cache", "prune"]) == main(["cache", "clear"]) == 0
        output = capsys.readouterr()
        assert "a process uses it" in output.err
        (used,) = (item for item in HostCache().items() if item.kind == "prepared" and item.state == "ready")
        assert (used.name, used.is_in_use) == ("tiny", True)
    finally:
        is_enough.set()
        process.join()
    assert process.exitcode == 0
    assert main(["cache", "clear"]) == 0
    assert HostCache().items() == []


def test_the_list_says_size_age_and_what_an_entry_belongs_to(folder: Path, artifact: Artifact, capsys: Output):
    add("three", 2_000_000, used_at=time.time() - 3 * 86_400, engine="tokenizers 0.0.1")
    Reranker.load(artifact.folder).close()
    capsys.readouterr()
    assert main(["cache", "list"]) == 0
    output = capsys.readouterr()
    old, new = sorted(line.split() for line in output.out.splitlines() if "prepared" in line)[::-1]
    assert old[:7] == ["2.0", "MB", "3", "d", "stale", "prepared", "three"]
    assert new[4:8] == ["ready", "prepared", "tiny", "cpu-fp32"]
    assert f"artifact {artifact.identity[:12]}" in output.out
    assert output.err == f"{folder}: 2.0 MB, no limit (RANKRT_CACHE_MAX)\n"


def test_the_list_as_json_has_the_same(folder: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANKRT_CACHE_MAX", "20GB")
    made = add("one", artifact="abc")
    assert main(["cache", "list", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (entry,) = (entry for entry in answer["entries"] if entry["state"] == "ready")
    assert (answer["folder"], answer["limit"]) == (str(folder), 20 * 10**9)
    assert (entry["path"], entry["kind"], entry["name"]) == (str(made), "prepared", "one")
    assert entry["depends_on"] == {"artifact": "abc"}
    assert entry["n_bytes"] == answer["n_bytes"] > 1000
    assert entry["used_at"] == pytest.approx(time.time(), abs=60)


def test_an_empty_cache_is_listed_and_cleared(folder: Path, capsys: Output):
    assert main(["cache", "list"]) == main(["cache", "prune"]) == main(["cache", "clear"]) == 0
    assert capsys.readouterr().out.count("freed 0.0 MB") == 2


def test_what_other_programs_keep_beside_it_stays(folder: Path):
    add("one")
    (folder / "notes.txt").write_text("mine")
    HostCache().clear()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_cache_that_is_a_file_is_one_sentence(folder: Path, capsys: Output):
    folder.write_text("")
    with pytest.raises(CacheError, match=f"{folder}.* cannot be used"):
        add("one")
    assert main(["cache", "list"]) == 1
    error = f"rankrt: error: {folder} is not a folder, so it cannot be the cache. Name one with RANKRT_CACHE\n"
    assert capsys.readouterr().err == error


def sparse(path: Path, n_bytes: int) -> Path:
    """Write a file without most of its bytes."""
    with path.open("wb") as file:
        file.truncate(n_bytes)
    return path


def change(path: Path, start: int, n_bytes: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\1" * n_bytes)


@pytest.mark.parametrize("start", [0, 1, 5_000_000, SMALL_BYTES, 2 * SMALL_BYTES - (2 << 20)])
def test_a_hole_of_two_megabytes_in_a_large_file_is_found_by_samples(tmp_path: Path, start: int):
    path = sparse(tmp_path / "large", 2 * SMALL_BYTES)
    seal = Seal.of(path)
    assert seal.problem(path, is_full=False) is None
    change(path, start, 2 << 20)
    assert seal.problem(path, is_full=False) == "large has other bytes than were written"


def test_a_small_hole_in_a_large_file_is_found_by_reading_it_whole(tmp_path: Path):
    path = sparse(tmp_path / "large", 2 * SMALL_BYTES)
    seal = Seal.of(path)
    change(path, 1 << 20, 100)
    assert seal.problem(path, is_full=False) is None
    assert seal.problem(path, is_full=True) == "large has other bytes than were written"


def test_every_byte_of_a_small_file_counts(tmp_path: Path):
    path = sparse(tmp_path / "small", SMALL_BYTES)
    seal = Seal.of(path)
    change(path, SMALL_BYTES - 5000, 1)
    assert seal.problem(path, is_full=False) == "small has other bytes than were written"


def test_a_file_that_was_cut_or_is_gone_is_named(tmp_path: Path):
    path = sparse(tmp_path / "file", 1000)
    seal = Seal.of(path)
    os.truncate(path, 999)
    assert seal.problem(path, is_full=False) == "file has 999 bytes instead of 1000"
    path.unlink()
    assert seal.problem(path, is_full=False) == "file is missing"
