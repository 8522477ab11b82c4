"""Epochs: the high 16 bits of the LSN, one for each life of a state.

A state that was lost and made anew, or put back from a backup, counts from the start again, and must not hand out
numbers that are in use. So each life claims an epoch with a conditional create of `epoch/<number>` beside the
database, above every epoch there is. A life is the current one as long as the newest claim is its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
import uuid
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pkm_pipelines.model.errors import StoreError
from pkm_pipelines.storage.endpoint import first_line, open_store
from pkm_pipelines.storage.location import Location

if TYPE_CHECKING:
    from pkm_pipelines.storage.endpoint import PlainStore

FOLDER = "epoch"
COUNTER_BITS = 48
MAX_EPOCH = (1 << 15) - 1  # an LSN stays positive as a signed 64-bit integer, which is what tables store
_FIRST_DAY = dt.date(2026, 1, 1)


@dataclass(frozen=True)
class Epoch:
    """A claimed epoch; `claim` tells two lives with one number apart."""

    number: int
    claim: str

    @classmethod
    def parse(cls, raw: bytes) -> Epoch:
        """An epoch as it was stored."""
        value = json.loads(raw)
        return cls(int(value["number"]), str(value["claim"]))

    def encode(self) -> bytes:
        """The epoch as JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    def lsn(self, counter: int) -> int:
        """The LSN of a counter value."""
        return self.number << COUNTER_BITS | counter


def claim(location: Location, above: int = 0) -> Epoch:
    """Claim an epoch above `above` and above every one claimed before at the location; raises `StoreError`.

    It is no less than the number of days since 2026, so that a state is unlikely to count again from an old epoch
    even when the claims were lost together with the database.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError

    with _errors(location):
        store = open_store(location)
        today = (dt.datetime.fromtimestamp(time.time(), dt.UTC).date() - _FIRST_DAY).days
        number = max(_newest(store) + 1, above + 1, today, 1)
        while number <= MAX_EPOCH:
            epoch = Epoch(number, uuid.uuid4().hex)
            try:
                obstore.put(store, _path(number), epoch.encode(), mode="create", use_multipart=False)
            except AlreadyExistsError:
                number += 1
            else:
                return epoch
    raise StoreError(f"{location.url}: the {MAX_EPOCH} epochs of a state are used up")


def is_current(location: Location, epoch: Epoch) -> bool:
    """Whether the newest claim is this one: False for a state that was restored elsewhere or beside a newer one."""
    import obstore

    with _errors(location):
        store = open_store(location)
        if _newest(store) != epoch.number:
            return False
        return Epoch.parse(bytes(obstore.get(store, _path(epoch.number)).bytes())) == epoch


def _newest(store: PlainStore) -> int:
    names = (entry["path"].rpartition("/")[2] for page in store.list(f"{FOLDER}/") for entry in page)
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _path(number: int) -> str:
    return f"{FOLDER}/{number:05d}"


@contextlib.contextmanager
def _errors(location: Location) -> Generator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise StoreError(f"{location.url}: the epochs of the state: {first_line(error)}") from error
