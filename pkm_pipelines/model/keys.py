"""The layout of the state: every key that SlateDB holds, and nowhere else.

| key | value | written by |
|---|---|---|
| `note:<source>:<path>` | where the note at this path stands (JSON) | folder and git sources |
| `file:<source>:<path>` | where a file that is no note stands (JSON) | sources |
| `history:<source>:<ordinal>` | one first-parent commit and its changes (JSON) | git source |
| `cursor:<source>` | how far a source was read (JSON); `/notes`, `/media`, `/removed/<commit>` follow | sources |
| `flavour:<source>` | how the notes of a source are written: `obsidian` or `logseq` | ingest |
| `id:<note-id>` | the source and path of the note that has this id (JSON) | sources |
| `correction:<source>:<note-id>` | a note whose state must be told again after a branch was reset (JSON) | git source |
| `intent:<op-id>` | a bronze commit that may or may not have landed (JSON) | ingest |
| `watermark:<table>:<input>` | copy of the mark in the table's newest commit | every commit |
| `reads:<table>` | how often a hybrid table was read, ever; a number | reads, merges |
| `consumer:<table>:<name>` | who follows a table, where it writes, and how far it has read (JSON) | processing |
| `job:<run-id>` | queued, running, stage, counts, error (JSON) | runs |
| `problem:<source>:<path>` | what is odd about a file (JSON) | sources, parsing |
| `unread:<run-id>:<content>` | why a run could not read a source, until the run ends with it | runs |
| `tag:<table>:<tag>` | a tag of ours and what it is for (JSON) | commits, cuts |
| `cut:<cut-id>` | one consistent moment over all tables (JSON) | finished runs |
| `maintenance:<operation>:<table>` | progress, and the last report, of a maintenance (JSON) | maintenance |
| `doomed:<table>:<number>` | files of expired snapshots that are deleted after a time of grace (JSON) | expiry |
| `lock:<name>` | a lease: holder, expiry, fencing token (JSON) | writers |
| `doctor:<id>` | a probe, gone again at once | `pkm doctor` |
| `meta:epoch`, `meta:lsn` | epoch and counter of the LSN | state service |
| `meta:request:<session>` | the last answer of a client's session (JSON) | state service |
| `meta:collected` | when unused objects were last removed | state service |

Paths may hold any character but NUL; they stand last in a key, so that a prefix is never ambiguous.
Source names and table names hold no ':' (settings refuse it).
"""

from __future__ import annotations

NOTE = "note:"
FILE = "file:"
HISTORY = "history:"
CURSOR = "cursor:"
FLAVOUR = "flavour:"
IDENTITY = "id:"
CORRECTION = "correction:"
INTENT = "intent:"
WATERMARK = "watermark:"
READS = "reads:"
CONSUMER = "consumer:"
JOB = "job:"
PROBLEM = "problem:"
UNREAD = "unread:"
TAG = "tag:"
CUT = "cut:"
MAINTENANCE = "maintenance:"
DOOMED = "doomed:"
LOCK = "lock:"
DOCTOR = "doctor:"
META = "meta:"


def notes(source: str) -> str:
    """The prefix of all notes of a source."""
    return f"{NOTE}{source}:"


def note(source: str, path: str) -> str:
    """The key of the note at `path`."""
    return f"{NOTE}{source}:{path}"


def files(source: str) -> str:
    """The prefix of all files of a source that are no notes."""
    return f"{FILE}{source}:"


def file(source: str, path: str) -> str:
    """The key of the file at `path`."""
    return f"{FILE}{source}:{path}"


def histories(source: str) -> str:
    """The prefix of the indexed commits of a git source."""
    return f"{HISTORY}{source}:"


def history(source: str, ordinal: int) -> str:
    """The key of one commit; zero-padded, so that keys sort as commits do."""
    return f"{HISTORY}{source}:{ordinal:012d}"


def cursor(source: str) -> str:
    """The key of a source's cursor."""
    return f"{CURSOR}{source}"


def flavour(source: str) -> str:
    """The key of how a source's notes are written."""
    return f"{FLAVOUR}{source}"


def identity(note_id: str) -> str:
    """The key of who has an id: it is one space for all sources, as the id is a key of tables over all sources."""
    return f"{IDENTITY}{note_id}"


def corrections(source: str) -> str:
    """The prefix of a source's notes that must be told again."""
    return f"{CORRECTION}{source}:"


def correction(source: str, note_id: str) -> str:
    """The key of one note that must be told again."""
    return f"{CORRECTION}{source}:{note_id}"


def intent(op_id: str) -> str:
    """The key of an intended commit."""
    return f"{INTENT}{op_id}"


def watermark(table: str, input_table: str) -> str:
    """The key of the copy of a watermark."""
    return f"{WATERMARK}{table}:{input_table}"


def reads(table: str) -> str:
    """The key of the number of reads of a table."""
    return f"{READS}{table}"


def consumers(table: str) -> str:
    """The prefix of the consumers of a table."""
    return f"{CONSUMER}{table}:"


def consumer(table: str, name: str) -> str:
    """The key of one consumer of a table."""
    return f"{CONSUMER}{table}:{name}"


def job(run_id: str) -> str:
    """The key of a run's job record."""
    return f"{JOB}{run_id}"


def problems(source: str) -> str:
    """The prefix of a source's problems."""
    return f"{PROBLEM}{source}:"


def problem(source: str, path: str) -> str:
    """The key of the problems of one file."""
    return f"{PROBLEM}{source}:{path}"


def unread(run_id: str, content: str = "") -> str:
    """The key of why a run could not read the notes or media of a source; without `content`, the prefix of both."""
    return f"{UNREAD}{run_id}:{content}"


def tag(table: str, name: str) -> str:
    """The key of a tag that the project made on a table."""
    return f"{TAG}{table}:{name}"


def cut(cut_id: str) -> str:
    """The key of a cut."""
    return f"{CUT}{cut_id}"


def maintenance(operation: str, table: str) -> str:
    """The key of what an operation of maintenance has done, or is doing, to a table."""
    return f"{MAINTENANCE}{operation}:{table}"


def doomed_files(table: str) -> str:
    """The prefix of the files of a table that are to be deleted."""
    return f"{DOOMED}{table}:"


def doomed(table: str, number: int) -> str:
    """The key of some files that are to be deleted; `number` grows with time, so that the oldest come first."""
    return f"{DOOMED}{table}:{number:020d}"


def lock(name: str) -> str:
    """The key of a lease."""
    return f"{LOCK}{name}"


def meta(name: str) -> str:
    """A key of the state service's own; clients neither see nor write them."""
    return f"{META}{name}"
