"""Making a source tell again what it has told, because bronze no longer has it.

A source's index says what was told of each note and file. Where that is not in bronze any more, the index is made to
differ from what is there: an edit, or a delete, is found once more by the next look, under the same identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Literal

from pkm_pipelines.model import keys
from pkm_pipelines.model.records import Mutation
from pkm_pipelines.sources.overlay import dump
from pkm_pipelines.sources.scan import Known
from pkm_pipelines.storage.slate_client import State

Content = Literal["notes", "media"]
_AT_ONCE = 1000


def retell_folder(state: State, source: str, content: Content, names: Mapping[str, str]) -> Iterator[Mutation]:
    """The state writes after which a folder tells of `names` again: the ids of notes, or the paths of files.

    What it knew of their contents is forgotten; of one that is gone it is forgotten that this was told.
    """
    remaining = iter(names)
    while part := list(islice(remaining, _AT_ONCE)):
        places = _places(state, source, content, part)
        for key, value in state.get_many(places).items():
            known = Known.load(json.loads(value))
            if known.version:
                yield Mutation(key, dump(replace(known, hash=None, mark=None, deleted=False).dump()))


def _places(state: State, source: str, content: Content, names: list[str]) -> list[str]:
    if content == "media":
        return [keys.file(source, path) for path in names]
    holders = state.get_many([keys.identity(note_id) for note_id in names]).values()
    return [keys.note(source, holder["path"]) for value in holders if (holder := json.loads(value))["source"] == source]


def retell_git(source: str, content: Content, names: Mapping[str, str]) -> Iterator[Mutation]:
    """The same for a git source, by the marks that a reset of its branch leaves (git_reset.py).

    `names` says at which path each was told last.
    """
    place = source if content == "notes" else f"{source}/media"
    for name, path in names.items():
        mark = {
            "reset": None,
            "path": path,
            "alive": False,
            "force": True,
            "oid": None,
            "commit": None,
            "changed": None,
        }
        yield Mutation(keys.correction(place, name), json.dumps(mark).encode())
