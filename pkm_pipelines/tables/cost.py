"""Whether a write had better rewrite a data file, or mark rows of it as deleted: the rule of hybrid writes.

Costs are bytes moved. The rows that change are written either way. Besides,

* *rewriting* a file of `b` bytes of which a share `d` is dead costs, once, reading all and writing what is left:
  `C = b * (1 + WRITING * (1 - d))`;
* *marking* costs next to nothing now, and each later read of the file pays its *burden*: the dead rows that it reads
  in vain, and for each of `n` delete files one more file to open: `B = b * d + OPENING * n`. The rows that changed lie
  in one more small file for each write, which is another `OPENING`; that is why `n` is counted twice. Both serve all
  data files of the partition that the write concerns, and each of them bears its part.

If a table is read `r` times between two writes, and a file is rewritten every `t` writes to the table while its burden
grows evenly from nothing to `B`, reads pay about `r * B * t / 2` in that time. What a file costs, `C + r * B * t / 2`
for `t` writes with `B` growing with `t`, is least for each write where both terms are equal, as in every problem of
renting or buying. So the rule is

    rewrite if  r * B * t / 2 >= C

with `t` the writes to the table since the file was written. A file that was left alone for long, and is touched for
the first time, is thus rewritten sooner than one that every write touches: it is likely to be left alone for as long
again, and all reads in that time would pay.

All of it is known when a write is planned: the rows that change and those that are deleted already, from looking for
them; bytes, rows, delete files and `t` (sequence numbers) from the metadata; the reads from counting them
(`reads.py`), or from the table's property `pkm.reads-per-write`. If that number is wrong by a factor of four, `t` is
wrong by a factor of two, for it goes with the root, and the cost is a quarter above the least.

Source for renting or buying: A. Karlin et al., Competitive snoopy caching, Algorithmica 3 (1988).
"""

from __future__ import annotations

from dataclasses import dataclass

from pyiceberg.table import Table

from pkm_pipelines.storage.iceberg_manifests import LiveFile
from pkm_pipelines.storage.iceberg_schema import write_mode_of

# Writing a byte (sorting, encoding, compressing, two copies on an object store) by reading one.
WRITING = 3.0
# Opening one more file on an object store, as bytes that could be read in that time.
OPENING = 512 << 10


@dataclass(frozen=True)
class Touched:
    """A data file that a write concerns.

    `bytes` and `rows` are those of the file, `dead` the rows that are deleted after the write, `delete_files` the files
    that say so with this write's own, `shared_by` for how many data files this write would make one, and `age` the
    writes to the table since the file was written, with this one.
    """

    bytes: int
    rows: int
    dead: int
    delete_files: int = 1
    shared_by: int = 1
    age: int = 1

    @property
    def rewriting(self) -> float:
        """Bytes that rewriting it costs."""
        return self.bytes * (1 + WRITING * (1 - self.dead / max(self.rows, 1)))

    @property
    def burden(self) -> float:
        """Bytes that each read of it pays for its deletes if it is not rewritten."""
        return self.bytes * self.dead / max(self.rows, 1) + 2 * OPENING * self.delete_files / self.shared_by


def is_rewritten(table: Table, file: LiveFile, *, deleted: int, losing: int, files: int, reads: float) -> bool:
    """Whether a write to `table` rewrites a data file, as the table is set, for a hybrid one by the rule.

    `deleted` rows of the file went before, `losing` go now, `files` data files lose rows with it, and `reads` are to be
    expected before the next write.
    """
    mode = write_mode_of(table)
    if mode != "hybrid":
        return mode == "copy-on-write"
    touched = Touched(
        bytes=file.file.file_size_in_bytes,
        rows=file.file.record_count,
        dead=deleted + losing,
        delete_files=len(file.deletes) + 1,
        shared_by=files,
        age=table.metadata.next_sequence_number() - file.sequence_number,
    )
    return should_rewrite(touched, reads)


def reads_pay(file: Touched, reads_per_write: float) -> float:
    """Bytes that reads pay for the deletes of a file between two rewritings, if one is due now."""
    return reads_per_write * file.burden * file.age / 2


def should_rewrite(file: Touched, reads_per_write: float = 1.0) -> bool:
    """Whether to rewrite the file; see the module for the rule."""
    return reads_pay(file, reads_per_write) >= file.rewriting
