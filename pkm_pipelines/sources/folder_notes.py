"""From differences of a folder to changes of notes, and the entries that say that they were seen."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pkm_pipelines.model import ids, keys
from pkm_pipelines.model.records import ChangeType, NoteChange, Problem, SourceBatch
from pkm_pipelines.sources import files, oddities
from pkm_pipelines.sources.batches import Batcher, to_datetime, to_us
from pkm_pipelines.sources.identity import Register, UnusableIdError, stated_id
from pkm_pipelines.sources.overlay import Overlay
from pkm_pipelines.sources.renames import Moves
from pkm_pipelines.sources.scan import Appeared, Difference, Known, Mark, Odd, Suspect, Vanished
from pkm_pipelines.sources.vault import File

_GROUP = 256
_FUTURE_US = 3600 * 1_000_000

Codes = list[tuple[str, object]]


@dataclass(frozen=True, slots=True)
class _Failure:
    """A file that could not be read: the code of what is odd about it, or None if it is not there any more."""

    code: str | None
    detail: object = ""


class NoteWriter:
    """Writes the changes of one scan, observed at `now`, into batches."""

    def __init__(self, batcher: Batcher, overlay: Overlay, now: dt.datetime, max_bytes: int) -> None:
        self.register = Register(batcher.source, overlay)
        self._overlay = overlay
        self._batcher = batcher
        self._now = now.astimezone(dt.UTC)
        self._now_us = to_us(now)
        self._max_bytes = max_bytes
        self._moves = Moves()
        self._occupied: set[str] = set()

    def write(self, steps: Sequence[Difference], moves: Moves) -> Iterator[SourceBatch]:
        """Batches for `steps`, in their order; files are read here, at most a batch of bytes ahead."""
        self._moves = moves
        self._occupied = {step.path for step in steps if isinstance(step, Appeared | Suspect)}
        self._batcher.total = len(steps)
        for group in self._read(steps):
            self._prefetch(group)
            for step, read in group:
                size = len(read.content or b"") if isinstance(read, files.Read) else 0
                yield from self._batcher.room_for(size)
                self._step(step, read)
                self._batcher.done += 1
        yield from self._batcher.flush()

    def _read(self, steps: Sequence[Difference]) -> Iterator[list[tuple[Difference, files.Read | _Failure | None]]]:
        group: list[tuple[Difference, files.Read | _Failure | None]] = []
        size = 0
        for step in steps:
            read = self._read_file(step.file) if isinstance(step, Appeared | Suspect) else None
            group.append((step, read))
            size += len(read.content or b"") if isinstance(read, files.Read) else 0
            if len(group) >= _GROUP or size >= self._batcher.max_bytes:
                yield group
                group, size = [], 0
        yield group

    def _read_file(self, file: File) -> files.Read | _Failure:
        try:
            return files.read(file.location, max_bytes=self._max_bytes)
        except FileNotFoundError:
            return _Failure(None)
        except files.ChangingError:
            return _Failure("changing")
        except files.TooLargeError as error:
            return _Failure("too-large", error)
        except OSError as error:
            return _Failure("unreadable", error.strerror)

    def _prefetch(self, group: Iterable[tuple[Difference, files.Read | _Failure | None]]) -> None:
        wanted: list[str] = []
        for step, read in group:
            if isinstance(step, Appeared) and step.known is None:
                self.register.remember_nothing(step.path)
            stated = _stated(read)[0] if isinstance(read, files.Read) else None
            wanted += self.register.lookups(step.path, stated)
            if step.known and step.known.note_id:
                wanted.append(keys.identity(step.known.note_id))
            if origin := self._moves.origins.get(step.path):
                wanted += self.register.lookups(origin[0], origin[1].note_id)
        self._overlay.prefetch(wanted)

    def _step(self, step: Difference, read: files.Read | _Failure | None) -> None:
        before = step.known.problems if step.known else ()
        if isinstance(step, Vanished):
            self._delete(step)
        elif isinstance(step, Odd):
            self._odd(step.path, before, [(step.oddity.code, step.oddity.detail)] if step.oddity else [])
        elif isinstance(read, files.Read):
            self._file(step, read)
        elif isinstance(read, _Failure) and read.code:
            self._odd(step.path, before, [(read.code, read.detail)], failed=files.mark(step.file.stat))

    def _odd(self, path: str, before: tuple[str, ...], codes: Codes, failed: Mark | None = None) -> None:
        """Remember what is odd about a path, and leave what is known of a note there as it is."""
        problems = self._batcher.problems(path, codes)
        entry = self.register.entry(path)
        known = Known.load(entry) if entry else Known()
        after = replace(known, problems=tuple(problem.code for problem in problems), failed=failed)
        if after != known:
            self.register.put(path, after.dump() or None)
        self._batcher.tell(path, before, problems)

    def _delete(self, step: Vanished) -> None:
        known, path = step.known, step.known.at or step.path
        assert known.note_id is not None
        after = Known(
            note_id=known.note_id,
            version=known.version + 1,
            changed_us=max(self._now_us, known.changed_us + 1),
            deleted=True,
            at=known.at,
        )
        self._change("DELETE", path, after)
        # Another note may stand at the path by now, and the entry be parked.
        stands_at = self.register.holders([known.note_id]).get(known.note_id, step.path)
        self.register.place(stands_at, after.dump())
        if path not in self._occupied:
            self._batcher.tell(path, known.problems, ())

    def _file(self, step: Appeared | Suspect, read: files.Read) -> None:
        path, mtime_us = step.path, read.stat.st_mtime_ns // 1000
        stated, codes = _stated(read)
        codes += self._codes(step.file, read, mtime_us)
        kind: ChangeType = "UPDATE_AFTER"
        origin = self._moves.origins.get(path)
        if origin:
            before = origin[1]
        elif isinstance(step, Suspect) and path not in self._moves.replaced:
            before = step.known
        else:
            kind = "INSERT"
            identity = self.register.identify(path, stated)
            before = Known.load(identity.revived) if identity.revived else Known(note_id=identity.note_id)
            if identity.duplicate:
                codes.append(("duplicate-id", identity.duplicate))
        if kind == "UPDATE_AFTER" and stated and stated != before.note_id and self.register.is_taken(stated):
            codes.append(("duplicate-id", stated))
        problems = self._batcher.problems(path, codes)

        is_changed = kind == "INSERT" or origin is not None or read.hash != before.hash
        after = replace(
            before,
            hash=read.hash,
            mark=files.mark(read.stat),
            inode=read.stat.st_ino,
            read_ns=read.at_ns,
            version=before.version + is_changed,
            changed_us=self._changed_us(before, mtime_us) if is_changed else before.changed_us,
            deleted=False,
            problems=tuple(problem.code for problem in problems),
            failed=None,
            at=None,
        )
        if is_changed:
            previous = (origin[1].at or origin[0]) if origin else None
            self._change(kind, path, after, read, previous, problems)
            if origin and previous and previous not in self._occupied:
                self._batcher.tell(previous, before.problems, ())
        self.register.place(path, after.dump())
        self._batcher.tell(path, step.known.problems if step.known else (), problems)

    def _codes(self, file: File, read: files.Read, mtime_us: int) -> Codes:
        codes: Codes = [(code, "") for code in oddities.content_codes(read.content or b"")]
        if file.code:
            codes.append((file.code, ""))
        if mtime_us > self._now_us + _FUTURE_US:
            codes.append(("future-mtime", to_datetime(mtime_us).isoformat()))
        return codes

    def _changed_us(self, before: Known, mtime_us: int) -> int:
        """When a change happened: the file's mtime, no later than now and later than the change before."""
        known_us = min(mtime_us, self._now_us)
        return max(known_us, before.changed_us + 1) if before.version else known_us

    def _change(
        self,
        kind: ChangeType,
        path: str,
        after: Known,
        read: files.Read | None = None,
        previous_path: str | None = None,
        problems: tuple[Problem, ...] = (),
    ) -> None:
        assert after.note_id is not None
        self._batcher.add(
            NoteChange(
                # The version is the note's, so its id belongs to it: two notes that were born at one path both
                # have a version 1 there, and as empty notes even one content.
                change_id=ids.change_id(
                    self._batcher.source, f"{after.note_id}@{after.version}", path, kind, after.hash
                ),
                change_type=kind,
                source=self._batcher.source,
                note_id=after.note_id,
                path=path,
                previous_path=previous_path,
                changed_at=to_datetime(after.changed_us),
                partition_date=self._now.date(),
                content=read.content if read else None,
                content_hash=after.hash,
                modified_at=to_datetime(read.stat.st_mtime_ns // 1000) if read else None,
                version=after.version,
                problems=problems,
            )
        )


def _stated(read: files.Read) -> tuple[str | None, Codes]:
    try:
        return stated_id(read.content or b""), []
    except UnusableIdError:
        return None, [("unusable-id", "")]
