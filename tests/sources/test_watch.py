from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import watchfiles

from pkm_pipelines.model.errors import SourceError
from pkm_pipelines.sources import watch as module
from pkm_pipelines.sources.watch import watch
from tests.support.vaults import History, open_test_source, write_vault


@contextmanager
def watching(*paths: Path, **options: Any) -> Iterator[Queue[set[str]]]:
    """Watches in a thread until the block ends, which must then stop it."""
    stop, told = threading.Event(), Queue[set[str]]()

    def run() -> None:
        for changes in watch(paths, stop, debounce_ms=50, **options):
            told.put(changes)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive(), "it does not stop"


def until_told(told: Queue[set[str]], folder: Path, name: str) -> set[str]:
    """Write until the watch, which takes a moment to begin, has told of it; everything it told of."""
    seen: set[str] = set()
    for n in range(100):
        write_vault(folder, {name: f"{n}"})
        try:
            seen |= told.get(timeout=0.2)
        except Empty:
            continue
        if str(folder / name) in seen:
            return seen
    raise AssertionError(f"never told of {name}, only of {seen}")


def test_changes_are_told_and_hidden_ones_are_not(work: Path) -> None:
    root = write_vault(work / "v", {"x/a.md": "a", ".obsidian/workspace.json": "{}"}).resolve()
    with watching(root) as told:
        until_told(told, root, "x/a.md")
        write_vault(root, {".obsidian/workspace.json": "{1}", "x/.a.md.swp": "s", "new/b.md": "b"})
        seen = until_told(told, root, "z.md")
    while not told.empty():
        seen |= told.get()
    assert not [path for path in seen if "/." in path.removeprefix(str(root))]


def test_what_is_ignored_is_not_told(work: Path) -> None:
    root = write_vault(work / "v", {"a.md": "a", "out/b.md": "b", "outer/c.md": "c"}).resolve()
    with watching(root, ignored=[root / "out"]) as told:
        until_told(told, root, "outer/c.md")
        write_vault(root, {"out/b.md": "changed"})
        seen = until_told(told, root, "a.md")
    while not told.empty():
        seen |= told.get()
    assert str(root / "out/b.md") not in seen


def test_now_and_then_it_says_to_look_anyway(work: Path) -> None:
    with watching(work, every_seconds=0.01) as told:
        assert told.get(timeout=5) == set()
        assert told.get(timeout=5) == set()


def test_a_repository_is_watched_though_its_folder_is_hidden(work: Path) -> None:
    git = History(work / "v" / ".git")
    git.commit({"a.md": "a"})
    watched = open_test_source(git.path, kind="git").watched.resolve()
    with watching(watched) as told:
        deadline = time.monotonic() + 20
        seen: set[str] = set()
        while not any("refs/heads" in path for path in seen):
            assert time.monotonic() < deadline
            git.commit({"a.md": f"{deadline - time.monotonic()}"})
            try:
                seen |= told.get(timeout=0.3)
            except Empty:
                continue


def test_where_the_system_cannot_tell_it_polls(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_vault(work / "v", {"a.md": "a"}).resolve()
    asked: list[bool | None] = []
    real = watchfiles.watch

    def limited(*paths: str, **options: object):
        asked.append(options["force_polling"])  # type: ignore[arg-type]
        if not options["force_polling"]:
            raise OSError(28, "inotify watch limit reached")
        return real(*paths, **{**options, "poll_delay_ms": 50})  # type: ignore[arg-type]

    monkeypatch.setattr(watchfiles, "watch", limited)
    with watching(root) as told:
        until_told(told, root, "a.md")
    assert asked == [None, True]


def test_folders_of_other_machines_are_polled(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def once(*_: str, **options: object) -> Iterator[set[object]]:
        asked.append(options["force_polling"])
        yield {(watchfiles.Change.modified, "a.md")}

    monkeypatch.setattr(watchfiles, "watch", once)
    monkeypatch.setattr(module, "_file_system", lambda path: "nfs4")
    stop = threading.Event()
    for _ in watch([work], stop):
        stop.set()
    assert asked == [True]


def test_the_file_system_is_that_of_the_longest_mount_point() -> None:
    assert module._file_system("/proc/self") == "proc"
    assert module._file_system("/procession") != "proc"


def test_a_folder_that_is_not_there_is_an_error(work: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        next(watch([work / "nowhere"], threading.Event()))


def test_it_ends_at_once_when_it_was_stopped_before(work: Path) -> None:
    stop = threading.Event()
    stop.set()
    assert list(watch([work], stop)) == []
