"""Whether a write had better rewrite a data file, or mark rows of it as deleted: the rule of hybrid writes.

Costs are bytes moved. The rows that change are written either way. Besides,

* *rewriting* a file of `b` bytes of which a share `d` is dead costs, once, reading all and writing what is left:
  `C = b * (1 + WRITING * (1 - d))`;
* *marking* costs next to nothing now, and each later read of the file pays its *burden*: the dead rows that it reads
  in vain, and for each of `n` delete files one more file to open: `B = b * d + OPENING * n`. The rows that changed lie
  in one more small file for each write, which is another `OPENING`; that is why `n` is counted twice. Both serve all
  data files of the partition that the write concerns, and each of them bears its part.

If a table is read `r` times between two writes that each make the same share of a file dead, the reads between two
rewritings `w` writes apart pay about `r * B * w / 2`, where `B` is the burden at the end: it grows evenly from
nothing. The cost of a write, `C / w + r * B / 2`, is least where both terms are equal, as in every problem of
renting or buying. So the rule is

    rewrite if  r * B * w / 2 >= C,  or if more than half of the file is dead,

with `w` the larger of the delete files there are now and of dead rows by rows that this write makes dead (delete files
are merged now and then). The second half of the rule bounds the space that dead rows take; what it rewrites has
been paid for by the rows that were written to make it so.

All of it is known when a write is planned: the rows that change and those that are deleted already, from looking for
them; the bytes, rows and delete files from the metadata; the reads from the table's property `pkm.reads-per-write`
(1 unless it is set). If that number is wrong by a factor of four, `w` is wrong by a factor of two, for it goes with
the root, and the cost is a quarter above the least.

Source for renting or buying: A. Karlin et al., Competitive snoopy caching, Algorithmica 3 (1988).
"""

from __future__ import annotations

from dataclasses import dataclass

# Writing a byte (sorting, encoding, compressing, two copies on an object store) by reading one.
WRITING = 3.0
# Opening one more file on an object store, as bytes that could be read in that time.
OPENING = 512 << 10
# A file more than this share of which is dead is rewritten in any case.
MOST_DEAD = 0.5


@dataclass(frozen=True)
class Touched:
    """A data file that a write concerns.

    `bytes` and `rows` are those of the file, `deleted` the rows that were deleted before, `dying` those that this write
    takes away, `delete_files` the files that say so with this write's own. A delete file that serves several data
    files counts as a part of one.
    """

    bytes: int
    rows: int
    deleted: int
    dying: int
    delete_files: int = 1
    shared_by: int = 1

    @property
    def dead(self) -> float:
        """The share of the file that is dead after the write."""
        return min(1.0, (self.deleted + self.dying) / max(self.rows, 1))

    @property
    def rewriting(self) -> float:
        """Bytes that rewriting it costs."""
        return self.bytes * (1 + WRITING * (1 - self.dead))

    @property
    def burden(self) -> float:
        """Bytes that each read of it pays for its deletes if it is not rewritten."""
        return self.bytes * self.dead + 2 * OPENING * self.delete_files / self.shared_by

    @property
    def writes(self) -> float:
        """How many writes have made rows of it dead, with this one."""
        return max(1.0, self.delete_files, (self.deleted + self.dying) / max(self.dying, 1))


def reads_pay(file: Touched, reads_per_write: float) -> float:
    """Bytes that reads pay for the deletes of a file between two rewritings, if it is rewritten at the next write."""
    return reads_per_write * file.burden * file.writes / 2


def should_rewrite(file: Touched, reads_per_write: float = 1.0) -> bool:
    """Whether to rewrite the file; see the module for the rule."""
    return file.dead > MOST_DEAD or reads_pay(file, reads_per_write) >= file.rewriting
