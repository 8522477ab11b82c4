"""A folder of notes: a vault on disk, compared with what the state knows of it.

Listing comes first and reads no contents: it finds what appeared, vanished or may have changed. Renames are paired
before the first change is yielded, so that none is torn apart by a batch. Then files are read, one group at a time.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pkm_pipelines.model import keys
from pkm_pipelines.model.errors import SourceError, SourceVanishedError
from pkm_pipelines.model.records import SourceBatch
from pkm_pipelines.settings import SourceSettings
from pkm_pipelines.sources import files
from pkm_pipelines.sources.base import StateReader
from pkm_pipelines.sources.batches import Batcher
from pkm_pipelines.sources.folder_media import MediaWriter
from pkm_pipelines.sources.folder_notes import NoteWriter
from pkm_pipelines.sources.overlay import Overlay
from pkm_pipelines.sources.renames import find_moves
from pkm_pipelines.sources.scan import Appeared, Count, Difference, Known, Odd, Suspect, Vanished, differences
from pkm_pipelines.sources.vault import Kind, Layout, Vault

# Fewer notes than this may all go at once without a question: a new vault is tidied up like that.
_ASK_FROM_NOTES = 10


class FolderSource:
    """Notes and media of one folder. It is read only; nothing is ever written to it."""

    def __init__(self, settings: SourceSettings, path: Path, *, batch_notes: int, batch_bytes: int) -> None:
        self.name = settings.name
        self.watched = path
        self._settings = settings
        self._layout = Layout(settings.include, settings.exclude)
        self._batch_notes = batch_notes
        self._batch_bytes = batch_bytes

    def notes(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """What has changed since the last scan, in path order; see `Source.notes`."""
        overlay = Overlay(state, keys.cursor(f"{self.name}/notes"))
        writer = NoteWriter(self._batcher(overlay), overlay, now, self._settings.max_note_bytes)
        count = Count()
        found = list(self._differences(state, "note", count=count, allow_vanish=allow_vanish))
        vanished = [d for d in found if isinstance(d, Vanished)]
        moves = find_moves(
            vanished,
            [d for d in found if isinstance(d, Appeared)],
            [d for d in found if isinstance(d, Suspect)],
            self._settings.max_note_bytes,
            writer.register.holders,
        )
        if not allow_vanish:
            self._ask(len(moves.gone), count.alive)
        steps: list[Difference] = [d for d in found if not isinstance(d, Vanished)]
        left = {d.path for d in vanished}
        # What is odd where a note was is remembered once the note has left the path.
        steps = sorted([*steps, *moves.gone], key=lambda d: (isinstance(d, Odd) and d.path in left, d.path))
        yield from writer.write(steps, moves)

    def media(self, state: StateReader, now: dt.datetime, *, allow_vanish: bool = False) -> Iterator[SourceBatch]:
        """The same for files that are no notes. A medium that moves is deleted here and inserted there."""
        overlay = Overlay(state, keys.cursor(f"{self.name}/media"))
        writer = MediaWriter(self._batcher(overlay), overlay, now, self._settings.max_media_bytes)
        yield from writer.write(list(self._differences(state, "media", allow_vanish=allow_vanish)))

    def history(self, state: StateReader, first_day: dt.date, last_day: dt.date) -> Iterator[SourceBatch]:
        """Raises `SourceError`: nobody recorded what a folder was like before it was first read."""
        raise SourceError(
            f"source {self.name}: the past of a folder cannot be observed, so {first_day} to {last_day} cannot be read "
            "again; a git repository as a source has a history"
        )

    def has_changes(self, state: StateReader) -> bool:
        """Whether a listing differs from the state; a missing root does, if anything is known of it."""
        return self._first_difference(state) is not None

    def fingerprint(self, state: StateReader) -> str:
        """Of the cursors and the first difference, so that a run that failed is tried again when that is another."""
        cursors = state.get_many([keys.cursor(f"{self.name}/{kind}") for kind in ("notes", "media")])
        word = repr((sorted(cursors.items()), self._first_difference(state)))
        return hashlib.sha256(word.encode(errors="backslashreplace")).hexdigest()[:32]

    def folders(self) -> set[str]:
        """The names of the top-level folders, hidden ones included; raises `SourceError` if there is no root."""
        try:
            with os.scandir(self.watched) as entries:
                return {entry.name for entry in entries if _is_folder(entry)}
        except OSError as error:
            raise self._unreadable(error) from None

    def _first_difference(self, state: StateReader) -> tuple[object, ...] | None:
        try:
            for kind in ("note", "media"):
                for difference in self._differences(state, kind, again=False):
                    mark = files.mark(difference.file.stat) if isinstance(difference, Appeared | Suspect) else None
                    return type(difference).__name__, difference.path, mark
        except SourceVanishedError:
            return ("the root is gone",)
        return None

    def _differences(
        self,
        state: StateReader,
        kind: Kind,
        *,
        again: bool = True,
        count: Count | None = None,
        allow_vanish: bool = False,
    ) -> Iterator[Difference]:
        prefix = keys.notes(self.name) if kind == "note" else keys.files(self.name)
        known = ((key.removeprefix(prefix), value) for key, value in state.scan(prefix))
        try:
            with os.scandir(self.watched) as entries:
                is_empty = next(entries, None) is None
        except FileNotFoundError as error:
            if not self._knows_anything(state):
                raise self._unreadable(error) from None
            if not allow_vanish:
                raise self._vanished("the folder is not there any more") from None
            yield from differences([], known, count=count)
            return
        except OSError as error:
            raise self._unreadable(error) from None
        if is_empty and not allow_vanish and self._knows_anything(state):
            # What a mount point looks like when its disk is not mounted; a vault keeps at least its settings folder.
            raise self._vanished("the folder is quite empty")
        walk = Vault(str(self.watched), self._layout, kind).walk()
        limit = self._settings.max_note_bytes if kind == "note" else None
        yield from differences(walk, known, max_bytes=limit, again=again, count=count)

    def _knows_anything(self, state: StateReader) -> bool:
        prefixes = (keys.notes(self.name), keys.files(self.name))
        return any(Known.load(json.loads(value)).is_alive for prefix in prefixes for _, value in state.scan(prefix))

    def _ask(self, gone: int, alive: int) -> None:
        share = self._settings.max_vanished_share
        if alive >= _ASK_FROM_NOTES and gone > share * alive:
            raise self._vanished(f"{gone} of its {alive} notes are gone at once (the limit is {share:.0%})")

    def _vanished(self, what: str) -> SourceVanishedError:
        return SourceVanishedError(
            f"source {self.name}: {self.watched}: {what}. Is a disk not mounted, or a sync not finished? Nothing was "
            "deleted. If the notes are really gone, say so with `pkm run --accept-deletes`"
        )

    def _unreadable(self, error: OSError) -> SourceError:
        return SourceError(
            f"source {self.name}: {self.watched}: the folder cannot be listed ({error.strerror}); "
            "check `path` of this source in the settings"
        )

    def _batcher(self, overlay: Overlay) -> Batcher:
        return Batcher(self.name, overlay, max_changes=self._batch_notes, max_bytes=self._batch_bytes)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False
