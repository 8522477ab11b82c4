"""The project's own small set of errors.

Every message says what was wrong, which file, table, key or row it was, and what to do. The
command line prints the message alone; anything that is not a `PkmError` is a defect of ours.
"""

from __future__ import annotations


class PkmError(Exception):
    """The base of every error that a user can act on."""


class SettingsError(PkmError):
    """A setting has a wrong key or value; the message names the key and never shows a secret."""


class StoreError(PkmError):
    """A store cannot be reached, refuses a request, or holds something unreadable."""


class UnsafeEndpointError(StoreError):
    """An object store endpoint ignores conditional writes and would lose data without a word."""


class CorruptObjectError(StoreError):
    """Bytes read back do not have the hash they are stored under."""


class TableNotFoundError(StoreError):
    """A table does not exist (yet)."""


class SnapshotNotFoundError(StoreError):
    """A snapshot, version, tag or timestamp is unknown or has expired."""


class CommitConflictError(StoreError):
    """A table kept changing under a write until the attempts were used up."""


class ObjectNotFoundError(StoreError):
    """No object is stored under a hash."""


class LeaseHeldError(StoreError):
    """Somebody else holds a lease; the message names the holder."""


class LeaseLostError(StoreError):
    """A lease expired or was taken over; the write it protected was not committed."""


class StateUnavailableError(StoreError):
    """The state service cannot be reached or started."""


class SourceError(PkmError):
    """A source cannot be read as a whole (a missing folder, a broken repository)."""


class SourceVanishedError(SourceError):
    """A source lost so much at once that deleting its notes needs the owner's word."""


class KnowledgeError(PkmError):
    """A note, model or text cannot be processed."""


class QueryError(PkmError):
    """A question cannot be answered: bad SQL, an unknown table, an empty search."""


class CancelledError(PkmError):
    """The work was cancelled; what was committed before is kept and the next run goes on."""
