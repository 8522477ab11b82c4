"""Stores that fail: a catalog and a file IO over the real ones, in which any call can go wrong on command.

A *store call* is every open, look, create, close after writing and delete of a file, and every load, commit and
creation of a table in the catalog. The calls that a catalog makes by itself while it commits count too. Calls are
numbered from the moment that `Faults.plan` is told what goes wrong, so a plan of the same numbers does the same
thing again.

| fault | what happens |
|---|---|
| `fail-before` | nothing is done, and the caller gets an error |
| `fail-after` | it is done, and the caller gets an error: the answer was lost |
| `lost` | the same in the catalog's own words for it, `CommitStateUnknownException` |
| `refused` | the catalog says that somebody else was quicker, and nothing is done |
| `slow` | it is done later, after other threads had time |
| `torn` | half of the bytes are at the path, and the caller gets an error |
| `duplicate` | it is done twice, and the caller gets the second answer, as after a resent request |
| `crash-before`, `crash-after` | the process is dead, before or after it is done: no later call has any effect |

A function in place of a fault is called before the call is done: a rival that was quicker.
"""

from __future__ import annotations

import io
import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.io import InputFile, InputStream, OutputFile, OutputStream
from pyiceberg.io.pyarrow import PyArrowFile
from pyiceberg.typedef import EMPTY_DICT, Properties
from sqlalchemy.exc import OperationalError

from pkm_pipelines.storage.cache import RecentlyUsed
from pkm_pipelines.storage.iceberg import IcebergStore
from pkm_pipelines.storage.iceberg_catalog import SharedFileIO
from pkm_pipelines.storage.location import Location
from tests.support.iceberg import Place

Fault = Literal[
    "fail-before", "fail-after", "lost", "refused", "slow", "torn", "duplicate", "crash-before", "crash-after"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
ERRORS = tuple(fault for fault in FAULTS if not fault.startswith("crash"))
CRASHES = tuple(fault for fault in FAULTS if fault.startswith("crash"))
Rival = Callable[[], object]
Trouble = Mapping[int, Fault | Rival] | Mapping[str, Fault | Rival] | Mapping[int | str, Fault | Rival]

_PROPERTY = "test.faults"
_FILE_IO = f"{__name__}.FaultyFileIO"
_KNOWN: dict[str, Faults] = {}
_NAMES = itertools.count()
T = TypeVar("T")


class Crash(BaseException):
    """The process was killed; what stands above it must not catch it, and nothing that it does has any effect."""


class Faults:
    """What goes wrong in the stores of one (imagined) process; any number of threads may share it.

    `happened` counts the faults by kind, `calls` the calls since the plan was made, `trace` says what they were.
    """

    def __init__(self, seed: int | None = None, *, rate: float = 0.0, kinds: Sequence[Fault] = ERRORS) -> None:
        self.name = f"faults-{next(_NAMES)}"
        self.happened: Counter[str] = Counter()
        self.calls = 0
        self.trace: list[str] = []
        self.is_dead = False
        self._plan: dict[int | str, Fault | Rival] = {}
        self._random = random.Random(seed)
        self._rate = rate
        self._kinds = kinds
        self._lock = threading.Lock()
        _KNOWN[self.name] = self

    def plan(self, plan: Trouble) -> None:
        """From now on: what goes wrong in the n-th call, counted from 0, or in the first one of a kind (`commit`)."""
        self._plan, self.calls, self.trace = {**plan}, 0, []

    def also(self, what: str, fault: Fault | Rival) -> None:
        """And in the next call of a kind, too."""
        self._plan[what] = fault

    def revive(self) -> None:
        """A new process begins, and nothing goes wrong in it: what the old one remembered of the stores is gone."""
        self.is_dead = False
        self.plan({})
        forget_caches()

    def call(self, what: str, do: Callable[[], T], *, tear: Callable[[], object] = lambda: None) -> T:
        """Make one store call, or what the plan makes of it."""
        fault = self._next(what)
        if callable(fault):
            fault()
            return do()
        if fault == "crash-before":
            self._die(what)
        if fault == "torn":
            tear()
        if fault in ("fail-before", "torn", "refused"):
            raise self._error(what, fault)
        if fault == "slow":
            time.sleep(0.003)
        result = do()
        if fault == "duplicate":
            return do()
        if fault == "crash-after":
            self._die(what)
        if fault in ("fail-after", "lost"):
            raise self._error(what, fault)
        return result

    def _next(self, what: str) -> Fault | Rival | None:
        with self._lock:
            if self.is_dead:
                raise Crash(f"{what}: the process is dead")
            number, self.calls = self.calls, self.calls + 1
            fault = self._plan.pop(number, None) or self._plan.pop(what.partition(" ")[0], None)
            if fault is None and self._rate and self._random.random() < self._rate:
                fault = self._random.choice(self._kinds)
            name = "rival" if callable(fault) else fault
            self.trace.append(f"{number} {what} {name or ''}".rstrip())
            if name is not None:
                self.happened[name] += 1
            return fault

    def _die(self, what: str) -> None:
        self.is_dead = True
        raise Crash(f"{what}: killed")

    def _error(self, what: str, fault: Fault) -> Exception:
        text = f"{fault} on purpose in call {self.calls - 1}, {what}"
        if what.startswith("commit"):
            if fault == "refused":
                return CommitFailedException(text)
            if fault == "lost":
                return CommitStateUnknownException(text)
        if what.startswith(("commit", "load", "create table")):
            return OperationalError(what, {}, Exception(text))
        return OSError(text)


def forget_caches() -> None:
    """Forget what this process has read of files that never change, as a new process would not know it."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("pkm_pipelines.")]
    for cache in {id(v): v for module in modules for v in vars(module).values()}.values():
        if isinstance(cache, RecentlyUsed):
            with cache._lock:
                cache._values.clear()
                cache._held = 0


class FaultyStore(IcebergStore):
    """The warehouse at `place`, over stores that fail as `faults` says."""

    def __init__(self, place: Place, faults: Faults) -> None:
        super().__init__(Location(place.warehouse), place.catalog)
        self.faults = faults
        self._instrumented: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        catalog = super().catalog
        if catalog is not self._instrumented:
            _instrument(catalog, self.faults)
            self._instrumented = catalog
        return catalog


def _instrument(catalog: Catalog, faults: Faults) -> None:
    catalog.properties |= {"py-io-impl": _FILE_IO, _PROPERTY: faults.name}
    for method, word in (("load_table", "load"), ("commit_table", "commit"), ("create_table", "create table")):
        real = getattr(catalog, method)

        def counted(*args: Any, _real: Any = real, _word: str = word, **kwargs: Any) -> Any:
            named = args[0] if isinstance(args[0], str | tuple) else args[0].name()
            return faults.call(f"{_word} {named}", lambda: _real(*args, **kwargs))

        setattr(catalog, method, counted)


class FaultyFileIO(SharedFileIO):
    """The project's own file IO, every call of which may fail."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._faults = _KNOWN[properties[_PROPERTY]]

    def new_input(self, location: str) -> PyArrowFile:
        return cast("PyArrowFile", _File(super().new_input(location), self._faults))

    def new_output(self, location: str) -> PyArrowFile:
        return cast("PyArrowFile", _File(super().new_output(location), self._faults))

    def delete(self, location: str | InputFile | OutputFile) -> None:
        path = location if isinstance(location, str) else location.location
        real = super().delete
        self._faults.call(f"delete {_short(path)}", lambda: real(path))


class _File(InputFile, OutputFile):
    def __init__(self, file: PyArrowFile, faults: Faults) -> None:
        super().__init__(file.location)
        self._file = file
        self._faults = faults

    def __len__(self) -> int:
        return self._call("look at", lambda: len(self._file))

    def exists(self) -> bool:
        return self._call("look for", self._file.exists)

    def open(self, seekable: bool = True) -> InputStream:
        return self._call("open", lambda: self._file.open(seekable))

    def create(self, overwrite: bool = False) -> OutputStream:
        stream = self._call("create", lambda: self._file.create(overwrite))
        return cast("OutputStream", _Output(self, stream))

    def to_input_file(self) -> InputFile:
        return self

    def _call(self, what: str, do: Callable[[], T], **options: Any) -> T:
        return self._faults.call(f"{what} {_short(self.location)}", do, **options)


class _Output(io.BytesIO):
    """What is written to a file, kept until it is closed: then all of it reaches the store, or half, or nothing."""

    def __init__(self, file: _File, stream: OutputStream) -> None:
        super().__init__()
        self._to = file
        self._stream = stream

    def close(self) -> None:
        if self.closed:
            return
        content = self.getvalue()
        super().close()
        try:
            self._to._call("close", lambda: self._put(content), tear=lambda: self._put(content[: len(content) // 2]))
        finally:
            self._stream.close()

    def __del__(self) -> None:
        """What was abandoned reaches no store."""

    def _put(self, content: bytes) -> None:
        if not cast("Any", self._stream).closed:
            self._stream.write(content)
            self._stream.close()


def _short(path: str) -> str:
    return path.rsplit("/", 1)[-1]
