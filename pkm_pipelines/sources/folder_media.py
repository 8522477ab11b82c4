"""From differences of a folder to changes of media: files that are no notes."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import ChangeType, MediaChange, Problem, SourceBatch
from pkm_pipelines.sources import files
from pkm_pipelines.sources.batches import Batcher, to_datetime, to_us
from pkm_pipelines.sources.overlay import Overlay, dump
from pkm_pipelines.sources.scan import Difference, Known, Odd, Vanished
from pkm_pipelines.sources.vault import File


class MediaWriter:
    """Writes the changes of one scan, observed at `now`, into batches; bytes are hashed here and never held."""

    def __init__(self, batcher: Batcher, overlay: Overlay, now: dt.datetime, max_bytes: int) -> None:
        self._overlay = overlay
        self._batcher = batcher
        self._now = now.astimezone(dt.UTC)
        self._now_us = to_us(now)
        self._max_bytes = max_bytes

    def write(self, steps: Sequence[Difference]) -> Iterator[SourceBatch]:
        """Batches for `steps`, in their order."""
        self._batcher.total = len(steps)
        for step in steps:
            yield from self._batcher.room_for(0)
            known = step.known or Known()
            if isinstance(step, Vanished):
                changed_us = max(self._now_us, known.changed_us + 1)
                after = Known(version=known.version + 1, changed_us=changed_us, deleted=True)
                self._change("DELETE", step.path, after)
                self._remember(step.path, known, after, ())
            elif isinstance(step, Odd):
                known = self._entry(step.path)  # a medium that was here has been deleted just before
                codes = [(step.oddity.code, step.oddity.detail)] if step.oddity else []
                problems = self._batcher.problems(step.path, codes)
                after = replace(known, problems=tuple(problem.code for problem in problems), failed=None)
                self._remember(step.path, known, after, problems)
            else:
                self._file(step.file, known)
            self._batcher.done += 1
        yield from self._batcher.flush()

    def _file(self, file: File, known: Known) -> None:
        stat, digest, read_ns = file.stat, None, time.time_ns()
        codes: list[tuple[str, object]] = [(file.code, "")] if file.code else []
        try:
            read = files.read(file.location, max_bytes=self._max_bytes, keep=False)
            stat, digest, read_ns = read.stat, read.hash, read.at_ns
        except files.TooLargeError as error:
            codes.append(("bytes-not-kept", error))
        except FileNotFoundError:
            return
        except (OSError, files.ChangingError) as error:
            code = ("unreadable", error.strerror) if isinstance(error, OSError) else ("changing", "")
            problems = self._batcher.problems(file.path, [code])
            after = replace(known, problems=(code[0],), failed=files.mark(stat))
            if after != known:
                self._remember(file.path, known, after, problems)
            return
        problems = self._batcher.problems(file.path, codes)
        mark = files.mark(stat)
        # Without a hash, size and mtime have to do.
        is_same = known.is_alive and (
            digest == known.hash
            if digest
            else known.hash is None and known.mark is not None and known.mark[:2] == mark[:2]
        )
        changed_us = known.changed_us
        if not is_same:
            modified_us = min(stat.st_mtime_ns // 1000, self._now_us)
            changed_us = max(modified_us, changed_us + 1) if known.version else modified_us
        after = Known(
            hash=digest,
            mark=mark,
            read_ns=read_ns,
            version=known.version + (not is_same),
            changed_us=changed_us,
            problems=tuple(problem.code for problem in problems),
        )
        if not is_same:
            kind: ChangeType = "UPDATE_AFTER" if known.is_alive else "INSERT"
            self._change(kind, file.path, after, stat, file.location if digest else None)
        self._remember(file.path, known, after, problems)

    def _change(
        self,
        kind: ChangeType,
        path: str,
        after: Known,
        stat: os.stat_result | None = None,
        location: str | None = None,
    ) -> None:
        self._batcher.add(
            MediaChange(
                change_type=kind,
                source=self._batcher.source,
                path=path,
                changed_at=to_datetime(after.changed_us),
                partition_date=self._now.date(),
                size_bytes=stat.st_size if stat else None,
                modified_at=to_datetime(stat.st_mtime_ns // 1000) if stat else None,
                version=after.version,
                open=partial(files.stream, location) if location else None,
            )
        )

    def _entry(self, path: str) -> Known:
        raw = self._overlay.get(keys.file(self._batcher.source, path))
        return Known.load(json.loads(raw)) if raw else Known()

    def _remember(self, path: str, before: Known, after: Known, problems: Sequence[Problem]) -> None:
        entry = after.dump()
        self._overlay.put(keys.file(self._batcher.source, path), dump(entry) if entry else None)
        self._batcher.tell(path, before.problems, problems)
