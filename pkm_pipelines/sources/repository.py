"""Reading a git repository through libgit2: its tip, its first-parent chain, and what a commit changed.

Only objects are read, never the work tree, and nothing is fetched or run: hooks, filters and `core.*` commands of
a repository are for git, and libgit2 leaves them alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pygit2
from pygit2.enums import DeltaStatus, DiffFind, FileMode, RepositoryOpenFlag

from pkm_pipelines.model.errors import SourceError

# git refuses a repository of another user because its configuration may name programs to run
# (safe.directory in git-config(1)). Nothing of it is run here, and a mounted volume often has another owner.
pygit2.settings.owner_validation = False
# libgit2 keeps up to 256 MB of objects by default; a walk along a history meets hardly any of them twice.
pygit2.settings.cache_max_size(32 << 20)

SIMILARITY_PERCENT = 50
RENAME_LIMIT = 1000
OID_BYTES = 20

Mode = Literal["file", "link", "submodule"]
_MODES: dict[int, Mode] = {FileMode.LINK: "link", FileMode.COMMIT: "submodule"}


class MissingObjectError(Exception):
    """An object is not in the repository; the argument is its id."""


@dataclass(frozen=True, slots=True)
class Side:
    """A path in a tree: its bytes, the object there (hexadecimal), and what kind of thing it is."""

    path: bytes
    oid: str
    mode: Mode


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """Who committed what when; times in microseconds since the epoch, the committer's and the author's."""

    oid: str
    committed_us: int
    authored_us: int
    author: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A first-parent chain: ids of 20 bytes each behind each other, oldest first (ten thousand take 200 kB).

    `is_continued` says that it begins right after the commit that it was to begin after. `boundary` is the parent of
    its first commit, if that parent is not there (a shallow clone).
    """

    ids: bytes
    is_continued: bool
    boundary: str | None


@dataclass(frozen=True, slots=True)
class TreeDiff:
    """What differs between two trees: `removed`, `added`, and `modified` (old, new) at one path."""

    removed: tuple[Side, ...]
    added: tuple[Side, ...]
    modified: tuple[tuple[Side, Side], ...]
    _diff: pygit2.Diff | None

    def similar(self) -> Iterator[tuple[bytes, bytes]]:
        """(old path, new path) of files that libgit2 takes for renamed: at least 50 % similar, at most 1000 sources.

        Files whose objects are not there are not compared.
        """
        if self._diff is None:
            return
        try:
            self._diff.find_similar(
                flags=DiffFind.FIND_RENAMES, rename_threshold=SIMILARITY_PERCENT, rename_limit=RENAME_LIMIT
            )
        except (KeyError, pygit2.GitError):
            return
        for delta in self._diff.deltas:
            if delta.status == DeltaStatus.RENAMED:
                yield delta.old_file.raw_path, delta.new_file.raw_path


class GitRepository:
    """One branch and sub-folder of a repository on disk."""

    def __init__(self, name: str, path: Path, branch: str | None, subfolder: str) -> None:
        self._name = name
        self._path = path
        self._branch = branch
        self._folder = subfolder.strip("/")
        try:
            self._repository = pygit2.Repository(str(path), RepositoryOpenFlag.NO_SEARCH)
        except (pygit2.GitError, KeyError) as error:
            raise SourceError(
                f"source {name}: {path}: not a git repository that can be read ({error}); `path` must be a repository "
                "or bare repository on this machine, and `subfolder` a folder in it"
            ) from None

    @property
    def folder(self) -> Path:
        """The repository's own folder, `.git` or a bare one."""
        return Path(self._repository.path)

    def tip(self) -> str | None:
        """The newest commit of the branch; None in a repository without any commit.

        Raises `SourceError`, naming the branches that there are, if the branch does not exist.
        """
        references = self._repository.references
        if self._branch is None:
            try:
                return str(self._repository.head.peel(pygit2.Commit).id)
            except (pygit2.GitError, KeyError):
                pass
        else:
            prefixes = ("refs/heads/", "refs/remotes/origin/", "refs/tags/", "")
            for full in (f"{prefix}{self._branch}" for prefix in prefixes):
                try:
                    return str(references[full].peel(pygit2.Commit).id)
                except (pygit2.GitError, KeyError, ValueError):
                    continue
        branches = sorted(
            reference.removeprefix("refs/heads/").removeprefix("refs/remotes/")
            for reference in references
            if reference.startswith(("refs/heads/", "refs/remotes/"))
        )
        if not branches and self._branch is None:
            return None
        wanted = f"branch {self._branch!r} does not exist" if self._branch else "HEAD is no commit"
        raise SourceError(
            f"source {self._name}: {self._path}: {wanted}; set `branch` to one of: {', '.join(branches) or 'none'}"
        )

    def chain(self, tip: str, known: str | None) -> Chain:
        """The first-parent chain from after `known`, or from its first commit, to `tip`."""
        ids = bytearray()
        oid = pygit2.Oid(hex=tip)
        stop = pygit2.Oid(hex=known) if known else None
        while oid != stop:
            commit = self._get(oid)
            if not isinstance(commit, pygit2.Commit):
                return Chain(_reversed(ids), False, str(oid))
            ids += oid.raw
            parents = commit.parent_ids
            if not parents:
                return Chain(_reversed(ids), False, self._hidden_parent(oid))
            oid = parents[0]
        return Chain(_reversed(ids), True, None)

    def has_commit(self, oid: str) -> bool:
        """Whether a commit is in the repository."""
        return isinstance(self._get(pygit2.Oid(hex=oid)), pygit2.Commit)

    def _hidden_parent(self, oid: pygit2.Oid) -> str | None:
        """The first parent of a commit that libgit2 shows without parents, because history is cut off there."""
        raw = self._repository.odb.read(oid)[1]
        found = re.match(rb"tree [0-9a-f]{40}\nparent ([0-9a-f]{40})\n", raw)
        return found[1].decode() if found else None

    def commit(self, oid: str) -> CommitInfo:
        """The facts of a commit; an author's name that is not UTF-8 is decoded with replacement."""
        commit = self._commit(oid)
        return CommitInfo(
            oid=oid,
            committed_us=commit.commit_time * 1_000_000,
            authored_us=commit.author.time * 1_000_000,
            author=commit.author.raw_name.decode(errors="replace"),
        )

    def diff(self, parent: str | None, oid: str) -> TreeDiff:
        """What `oid` changed in the sub-folder, compared with `parent` (None: with nothing)."""
        new = self._tree(oid)
        old = self._tree(parent) if parent else None
        try:
            if old is not None and new is not None:
                diff = old.diff_to_tree(new, context_lines=0)
            elif new is not None:
                diff = new.diff_to_tree(context_lines=0, swap=True)
            elif old is not None:
                diff = old.diff_to_tree(context_lines=0)
            else:
                return TreeDiff((), (), (), None)
        except (KeyError, pygit2.GitError) as error:
            raise self._incomplete(oid, error) from None
        removed: list[Side] = []
        added: list[Side] = []
        modified: list[tuple[Side, Side]] = []
        for delta in diff.deltas:
            before = _side(delta.old_file) if delta.status != DeltaStatus.ADDED else None
            after = _side(delta.new_file) if delta.status != DeltaStatus.DELETED else None
            if before and after and before.mode == after.mode:
                if before.oid != after.oid:
                    modified.append((before, after))
                continue
            removed += [before] if before else []
            added += [after] if after else []
        return TreeDiff(tuple(removed), tuple(added), tuple(modified), diff)

    def size(self, oid: str) -> int:
        """The size of a blob in bytes; raises `MissingObjectError`."""
        try:
            return self._repository.odb.read_header(pygit2.Oid(hex=oid))[1]
        except (KeyError, pygit2.GitError):
            raise MissingObjectError(oid) from None

    def read(self, oid: str) -> bytes:
        """The bytes of a blob; raises `MissingObjectError`."""
        found = self._get(pygit2.Oid(hex=oid))
        if not isinstance(found, pygit2.Blob):
            raise MissingObjectError(oid)
        return found.data

    def top_folders(self, oid: str) -> set[str] | None:
        """The names of the folders at the top of the sub-folder; None if there is no such sub-folder."""
        tree = self._tree(oid)
        if tree is None:
            return None
        return {entry.name for entry in tree if entry.filemode == FileMode.TREE and entry.name}

    def _commit(self, oid: str) -> pygit2.Commit:
        commit = self._get(pygit2.Oid(hex=oid))
        if not isinstance(commit, pygit2.Commit):
            raise self._incomplete(oid, "it is not there")
        return commit

    def _get(self, oid: pygit2.Oid) -> Any:  # the stubs know no common type of commits, trees and blobs
        """An object, or None if it is not there or broken."""
        try:
            return self._repository.get(oid)
        except (KeyError, pygit2.GitError):
            return None

    def _tree(self, oid: str) -> pygit2.Tree | None:
        try:
            tree: Any = self._commit(oid).tree
            for name in filter(None, self._folder.split("/")):
                if not isinstance(tree, pygit2.Tree) or name not in tree:
                    return None
                tree = tree[name]
        except (KeyError, pygit2.GitError) as error:
            raise self._incomplete(oid, error) from None
        return tree if isinstance(tree, pygit2.Tree) else None

    def _incomplete(self, oid: str, error: object) -> SourceError:
        return SourceError(
            f"source {self._name}: {self._path}: commit {oid} cannot be read ({error}); if this is a partial clone, "
            "bring its trees with `git fetch --refetch`, else check it with `git fsck`"
        )


def _side(file: pygit2.DiffFile) -> Side:
    return Side(file.raw_path, str(file.id), _MODES.get(file.mode, "file"))


def _reversed(ids: bytearray) -> bytes:
    return b"".join(bytes(ids[at : at + OID_BYTES]) for at in range(len(ids) - OID_BYTES, -1, -OID_BYTES))
