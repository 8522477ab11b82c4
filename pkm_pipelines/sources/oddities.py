"""What can be odd about a file of a vault, and how it is told: codes, messages, and the patterns of sync tools.

docs/sources.md lists every code, and what a source does with such a file.
"""

from __future__ import annotations

import os
import re

# `name.sync-conflict-20240131-125959-ABCDEFG.md`: docs.syncthing.net/users/syncing.html#conflicting-changes
_SYNCTHING = r"\.sync-conflict-\d{8}-\d{6}-[0-9A-Z]{7}"
# `name (Ann's conflicted copy 2024-01-31).md` Dropbox; `name (conflicted copy 2024-01-31 125959).md` Nextcloud and
# ownCloud; `name (Conflicted copy Laptop 202401311259).md` Obsidian Sync; a counter or "(1)" may stand at the end.
_CONFLICTED_COPY = r" \((?:[^()]* )?conflicted copy(?: [^()]*)?\)"
_DROPBOX_OTHERS = (
    r" \((?:case conflict|unicode encoding conflict|selective sync conflict|white ?space conflict)[^()]*\)"
)
# `name_conflict-20240131-125959.md`: ownCloud clients before 2.4.
_OWNCLOUD_OLD = r"_conflict-\d{8}-\d{6}"
# `name (SFConflict ann@example.com 2024-01-31-12-59-59).md`: Seafile.
_SEAFILE = r" \(SFConflict [^()]*\)"
_CONFLICT = re.compile(
    rf"(?:{_SYNCTHING}|(?:{_CONFLICTED_COPY}|{_DROPBOX_OTHERS}|{_OWNCLOUD_OLD}|{_SEAFILE})(?: ?\(\d+\))?)"
    r"(?:\.[^.]*){0,2}\Z",
    re.IGNORECASE,
)

# iCloud Drive puts `.name.md.icloud` where `name.md` will be; virtual files of Nextcloud and ownCloud are called
# `name.md.nextcloud` and hold one byte.
_ICLOUD = re.compile(r"\.(.+)\.icloud\Z", re.DOTALL)
_VIRTUAL = re.compile(r"(.+)\.(?:nextcloud|owncloud)\Z", re.DOTALL)
_VIRTUAL_BYTES = 1

# macOS: SF_DATALESS of <sys/stat.h> (a File Provider's file that is not on this disk). Windows file systems under
# WSL: FILE_ATTRIBUTE_OFFLINE, _RECALL_ON_OPEN, _RECALL_ON_DATA_ACCESS. Reading such a file would download it.
_SF_DATALESS = 0x40000000
_OFFLINE_ATTRIBUTES = 0x1000 | 0x40000 | 0x400000

_LFS_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:[a-z0-9.-]+ [^\n]*\n)*?size (\d+)\n")

_MAX_PRINTED = 1000

MESSAGES = {
    "invalid-utf8": "the bytes are not valid UTF-8; they are kept as they are, and the text shows U+FFFD instead",
    "nul-bytes": "there are NUL bytes in it; they are kept, and the text shows U+FFFD instead",
    "conflict-copy": "a sync tool's conflict copy; merge it into its note and delete it (it is no note of its own)",
    "placeholder": "a sync tool has not downloaded it yet; it is read once it is there (what is known of it is kept)",
    "unreadable": "it cannot be read: {detail} (what is known of it is kept)",
    "changing": "it kept changing while it was read; the next run tries again",
    "too-large": "{detail} bytes are more than the limit of the source's settings",
    "bytes-not-kept": "{detail} bytes are more than the limit of the source's settings; only its size is recorded",
    "not-a-file": "it is neither a file nor a folder (a pipe, socket or device) and is not opened",
    "undecodable-name": "its name is not valid UTF-8; rename it to have it read",
    "name-too-long": "its path is longer than 4096 bytes, which no file system takes; it is not read",
    "name-twin": "another name here is the same one in Unicode normal form C; this one keeps its own form as its path",
    "symlink-outside": "a link that leads out of the source is not followed",
    "symlink-inside": "a link to {detail}, which is read under its own name",
    "symlink-loop": "a link that leads back to where it is is not followed",
    "symlink-broken": "a link to something that is not there",
    "symlink": "a symbolic link of a git tree is not followed",
    "submodule": "a submodule is another repository; add it as a source of its own to have it read",
    "lfs-pointer": "the commit holds a Git LFS pointer and not the file itself",
    "missing-object": "git object {detail} is not in the repository (a partial clone?): `git fetch --refetch`, "
    "then backfill",
    "duplicate-id": "its front-matter id {detail} belongs to another note; this one has an id made from its path",
    "unusable-id": "its front-matter id is not a number or a text of 1 to 200 printable characters",
    "future-mtime": "its modification time {detail} is in the future; the time of the observation counts",
    "future-commit": "committed at {detail}, which is in the future; the time of the observation counts",
    "shallow-clone": "a shallow clone: the history before {detail} is not there (`git fetch --unshallow` brings it)",
}


def message(code: str, detail: object = "") -> str:
    """What there is to say about `code`."""
    return MESSAGES[code].format(detail=detail)


def is_conflict_copy(name: str) -> bool:
    """Whether a file name is one that a sync tool gives to the loser of a conflict."""
    return "onflict" in name.lower() and _CONFLICT.search(name) is not None


def placeholder_of(name: str, size: int) -> str | None:
    """The name of the file that `name` (of `size` bytes) holds the place of, if it does."""
    if name.endswith(".icloud"):
        found = _ICLOUD.match(name)
    else:
        found = _VIRTUAL.match(name) if size <= _VIRTUAL_BYTES else None
    return found[1] if found else None


def is_offline(stat: os.stat_result) -> bool:
    """Whether a file's bytes are not on this machine, where the operating system says so."""
    flags: int = getattr(stat, "st_flags", 0)
    attributes: int = getattr(stat, "st_file_attributes", 0)
    return bool(flags & _SF_DATALESS or attributes & _OFFLINE_ATTRIBUTES)


def printable(path: bytes) -> str:
    """A path that is no text, or is too long, as one that can be told: with escapes, and cut off."""
    text = path.decode(errors="backslashreplace")
    return text if len(text) <= _MAX_PRINTED else f"{text[:_MAX_PRINTED]}…"


def content_codes(content: bytes) -> list[str]:
    """The codes of what is odd about the bytes of a note."""
    codes: list[str] = []
    if not content.isascii():
        try:
            content.decode()
        except UnicodeDecodeError:
            codes.append("invalid-utf8")
    if b"\0" in content:
        codes.append("nul-bytes")
    return codes


def lfs_size(content: bytes) -> int | None:
    """The size in bytes of the file that a Git LFS pointer stands for (git-lfs docs/spec.md), if it is one."""
    if len(content) > 1024:
        return None
    found = _LFS_POINTER.match(content)
    return int(found[1]) if found else None
