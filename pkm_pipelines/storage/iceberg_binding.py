"""What a filter finds in a table: bound to its columns, and as its partitions decide it.

Null is as in SQL: only `is null` ever finds it. NaN differs from every number and is neither less nor greater, so
`!=`, `not in` and `is nan` find it. `not` turns each comparison round: `not (x > 5)` is `x <= 5`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    BoundIsNaN,
    BoundIsNull,
    BoundNotEqualTo,
    BoundNotIn,
    BoundPredicate,
    EqualTo,
    In,
    IsNull,
    LiteralPredicate,
    NotEqualTo,
    NotNull,
    NotStartsWith,
    Or,
    Reference,
    SetPredicate,
    StartsWith,
    UnboundPredicate,
    UnboundTerm,
)
from pyiceberg.expressions.literals import AboveMax, BelowMin, FloatLiteral, Literal
from pyiceberg.expressions.visitors import (
    BooleanExpressionVisitor,
    bind,
    expression_evaluator,
    extract_field_ids,
    rewrite_not,
    visit,
)
from pyiceberg.io.pyarrow import expression_to_pyarrow
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import DoubleType, FloatType, IcebergType, IntegerType, LongType, StringType

from pkm_pipelines.model.errors import StoreError

T = TypeVar("T")


@dataclass(frozen=True)
class BoundFilter:
    """A filter that fits a table.

    `where` is the filter as pyiceberg should plan it, `bound` the same bound to the schema, `arrow` for rows (None if
    every row matches) and `columns` the top columns that these need. If it `finds_nan`, statistics of a file, which
    leave NaN out, do not tell whether a row matches.
    """

    where: BooleanExpression
    bound: BooleanExpression
    arrow: pc.Expression | None
    columns: tuple[str, ...]
    finds_nan: bool

    def holds_for(self, table: Table, file: DataFile) -> bool:
        """Whether the partition of `file` alone says that every row in it matches."""
        return visit(self.bound, _Partition(table, file))


def bind_filter(table: Table, row_filter: BooleanExpression) -> BoundFilter:
    """`row_filter` for the present columns of `table`; raises `StoreError` if it does not fit them."""
    schema = table.schema()
    fitting = _Fitting(schema)
    try:
        where = visit(rewrite_not(row_filter), fitting)
        bound = bind(schema, where, case_sensitive=True)
        numbers = extract_field_ids(bound)
        is_flat = numbers <= {field.field_id for field in schema.fields}
        arrow = None if bound is AlwaysTrue() else expression_to_pyarrow(bound, None if is_flat else schema)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise StoreError(f"table {'.'.join(table.name())}: the filter does not fit: {error}") from None
    names = [schema.find_column_name(number) or "" for number in sorted(numbers)]
    columns = names if is_flat else [name.partition(".")[0] for name in names]
    return BoundFilter(where, bound, arrow, tuple(dict.fromkeys(columns)), fitting.finds_nan)


class _Visitor(BooleanExpressionVisitor[T]):
    """Visits a filter from which `not` was taken."""

    def visit_not(self, child_result: T) -> T:
        """Never comes."""
        raise TypeError("there is a not left in the filter")


class _Fitting(_Visitor[BooleanExpression]):
    """Fits each comparison to its column.

    pyiceberg finds null by `not in` and by what is true of any value of a column's type. It rounds 1.5 for a column
    of whole numbers, takes what is too large for the largest number, and compares what a 32-bit column holds with
    more digits than it has.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.finds_nan = False

    def visit_true(self) -> BooleanExpression:
        """Every row."""
        return AlwaysTrue()

    def visit_false(self) -> BooleanExpression:
        """No row."""
        return AlwaysFalse()

    def visit_and(self, left_result: BooleanExpression, right_result: BooleanExpression) -> BooleanExpression:
        """Both."""
        return And(left_result, right_result)

    def visit_or(self, left_result: BooleanExpression, right_result: BooleanExpression) -> BooleanExpression:
        """Either."""
        return Or(left_result, right_result)

    def visit_unbound_predicate(self, predicate: UnboundPredicate) -> BooleanExpression:
        """One comparison."""
        kind = self._type(predicate.term)
        if isinstance(predicate, SetPredicate) and isinstance(kind, FloatType | DoubleType):
            return visit(_one_by_one(predicate), self)
        fitted = _fitted(predicate, kind)
        bound = bind(self._schema, fitted, case_sensitive=True)
        if isinstance(predicate, IsNull | NotNull):
            return fitted
        if isinstance(kind, FloatType | DoubleType) and isinstance(bound, BoundNotEqualTo | BoundNotIn | BoundIsNaN):
            self.finds_nan = True
        if bound is AlwaysTrue():
            return NotNull(predicate.term)
        return And(NotNull(predicate.term), fitted) if isinstance(bound, BoundNotIn) else fitted

    def visit_bound_predicate(self, predicate: BoundPredicate) -> BooleanExpression:
        """Of a schema that may be another one."""
        raise TypeError(f"{predicate} is bound already; give a filter that names its columns")

    def _type(self, term: UnboundTerm) -> IcebergType:
        if not isinstance(term, Reference):
            raise TypeError(f"{term} is no column")
        if term.name not in self._schema.column_names:
            raise ValueError(f"there is no column {term.name!r}")
        field = self._schema.find_field(term.name)
        try:
            self._schema.accessor_for_field(field.field_id)
        except ValueError:
            raise ValueError(f"{term.name} lies inside of a list or a map, where filters do not reach") from None
        return field.field_type


class _Partition(_Visitor[bool]):
    """Whether each row of a partition matches a bound filter.

    pyiceberg's residuals are not asked: they take null for a value that differs from all others, or fail at it.
    """

    def __init__(self, table: Table, file: DataFile) -> None:
        self._spec = table.metadata.specs()[file.spec_id]
        self._schema = table.schema()
        self._partition = file.partition

    def visit_true(self) -> bool:
        """Every row."""
        return True

    def visit_false(self) -> bool:
        """No row."""
        return False

    def visit_and(self, left_result: bool, right_result: bool) -> bool:
        """Both."""
        return left_result and right_result

    def visit_or(self, left_result: bool, right_result: bool) -> bool:
        """Either: not if some rows match the one and the others the other, but then the file is read."""
        return left_result or right_result

    def visit_unbound_predicate(self, predicate: UnboundPredicate) -> bool:
        """Never comes."""
        raise TypeError(f"{predicate} is not bound")

    def visit_bound_predicate(self, predicate: BoundPredicate) -> bool:
        """One comparison, by any partition field of its column."""
        number = predicate.term.ref().field.field_id
        for position, part in enumerate(self._spec.fields):
            if part.source_id != number:
                continue
            strict = part.transform.strict_project(part.name, predicate)
            if strict is None:
                continue
            if self._partition[position] is None:  # so are all values of the column
                if isinstance(predicate, BoundIsNull):
                    return True
                continue
            partitions = Schema(*self._spec.partition_type(self._schema).fields)
            if expression_evaluator(partitions, strict, case_sensitive=True)(self._partition):
                return True
        return False


def _one_by_one(predicate: SetPredicate) -> BooleanExpression:
    """`in` or `not in` as comparisons: Arrow's sets tell -0.0 from 0.0, which are equal."""
    if isinstance(predicate, In):
        return Or(AlwaysFalse(), AlwaysFalse(), *(EqualTo(predicate.term, one) for one in predicate.literals))
    return And(AlwaysTrue(), AlwaysTrue(), *(NotEqualTo(predicate.term, one) for one in predicate.literals))


def _fitted(predicate: UnboundPredicate, kind: IcebergType) -> BooleanExpression:
    """The comparison with values that its column can hold; raises `TypeError` or `ValueError` for others."""
    if isinstance(predicate, StartsWith | NotStartsWith) and not isinstance(kind, StringType):
        raise TypeError(f"like is for text, and the column holds {kind}")
    if isinstance(predicate, SetPredicate):
        found = {_exact(literal, kind) for literal in predicate.literals}
        return type(predicate)(predicate.term, {one for one in found if not isinstance(one, AboveMax | BelowMin)})
    if isinstance(predicate, LiteralPredicate):
        exact = _exact(predicate.literal, kind)
        return predicate if isinstance(exact, AboveMax | BelowMin) else type(predicate)(predicate.term, exact)
    return predicate


def _exact(literal: Literal[Any], kind: IcebergType) -> Literal[Any]:
    if isinstance(kind, IntegerType | LongType) and _is_fraction(literal.value):
        raise ValueError(f"the column holds whole numbers, and {literal.value} is none")
    exact = literal.to(kind)
    if isinstance(exact, FloatLiteral):
        return FloatLiteral(struct.unpack("<f", struct.pack("<f", exact.value))[0])
    return exact


def _is_fraction(value: Any) -> bool:
    try:
        number = Decimal(value)
        return number.is_finite() and number != number.to_integral_value()
    except (InvalidOperation, TypeError, ValueError):
        return False
