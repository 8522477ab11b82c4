"""Random filters, each as pyiceberg takes it and as a function of a row that says what it means."""

from __future__ import annotations

import datetime as dt
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from pyiceberg.expressions import (
    And,
    BooleanExpression,
    EqualTo,
    GreaterThan,
    GreaterThanOrEqual,
    In,
    IsNaN,
    IsNull,
    LessThan,
    LessThanOrEqual,
    Not,
    NotEqualTo,
    NotIn,
    NotNaN,
    NotNull,
    NotStartsWith,
    Or,
    StartsWith,
)

Row = Mapping[str, Any]

# Each comparison beside its contrary: null is neither, NaN may be both or neither.
_COMPARISONS: dict[Any, tuple[Callable[[Any, Any], bool], Any]] = {
    EqualTo: (operator.eq, NotEqualTo),
    NotEqualTo: (operator.ne, EqualTo),
    LessThan: (operator.lt, GreaterThanOrEqual),
    GreaterThanOrEqual: (operator.ge, LessThan),
    GreaterThan: (operator.gt, LessThanOrEqual),
    LessThanOrEqual: (operator.le, GreaterThan),
}


@dataclass(frozen=True)
class Filter:
    """`expression` finds the rows for which `matches` is true, and `not` of it those for which `contrary` is."""

    expression: BooleanExpression
    matches: Callable[[Row], bool]
    contrary: Callable[[Row], bool]

    def __repr__(self) -> str:
        return str(self.expression)


def filters(columns: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Filter]:
    """Filters over some columns; with the values that each is compared with, none of them null."""
    one = st.one_of(*(_of_column(name, values) for name, values in columns.items()))
    return st.recursive(one, lambda inner: st.one_of(_negated(inner), _both(inner), _either(inner)), max_leaves=4)


def _of_column(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Filter]:
    return st.one_of(
        st.builds(lambda kind, value: _comparison(name, kind, value), st.sampled_from(list(_COMPARISONS)), values),
        st.builds(lambda some: _among(name, some), st.sets(values, max_size=3)),
        st.builds(lambda some: _negation(_among(name, some), NotIn(name, _told(some))), st.sets(values, max_size=3)),
        st.just(_is_null(name)),
        st.just(_negation(_is_null(name), NotNull(name))),
        *_of_its_own(name, values),
    )


def _of_its_own(name: str, values: st.SearchStrategy[Any]) -> list[st.SearchStrategy[Filter]]:
    """What only some columns can be asked: `v` holds numbers with NaN, `s` text."""
    if name == "v":
        is_nan = Filter(
            IsNaN(name), lambda row: _has(row, name, math.isnan), lambda row: _has_not(row, name, math.isnan)
        )
        return [st.just(is_nan), st.just(_negation(is_nan, NotNaN(name)))]
    if name == "s":
        return [values.map(lambda prefix: _like(name, prefix)), values.map(lambda prefix: _unlike(name, prefix))]
    return []


def _comparison(name: str, kind: Any, value: Any) -> Filter:
    test, contrary = _COMPARISONS[kind][0], _COMPARISONS[_COMPARISONS[kind][1]][0]
    return Filter(
        kind(name, _literal(value)),
        lambda row: _has(row, name, lambda one: test(one, value)),
        lambda row: _has(row, name, lambda one: contrary(one, value)),
    )


def _among(name: str, values: set[Any]) -> Filter:
    return Filter(
        In(name, _told(values)),
        lambda row: _has(row, name, lambda one: one in values),
        # Of no value at all pyiceberg makes a filter that finds nothing, and its contrary finds everything.
        lambda row: not values or _has(row, name, lambda one: one not in values),
    )


def _is_null(name: str) -> Filter:
    return Filter(IsNull(name), lambda row: row[name] is None, lambda row: row[name] is not None)


def _like(name: str, prefix: str) -> Filter:
    return Filter(
        StartsWith(name, prefix),
        lambda row: _has(row, name, lambda one: one.startswith(prefix)),
        lambda row: _has_not(row, name, lambda one: one.startswith(prefix)),
    )


def _unlike(name: str, prefix: str) -> Filter:
    return _negation(_like(name, prefix), NotStartsWith(name, prefix))


def _negation(inner: Filter, expression: BooleanExpression) -> Filter:
    return Filter(expression, inner.contrary, inner.matches)


def _negated(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    return inner.map(lambda one: _negation(one, Not(one.expression)))


def _both(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    return st.builds(
        lambda one, other: Filter(
            And(one.expression, other.expression),
            lambda row: one.matches(row) and other.matches(row),
            lambda row: one.contrary(row) or other.contrary(row),
        ),
        inner,
        inner,
    )


def _either(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    return st.builds(
        lambda one, other: Filter(
            Or(one.expression, other.expression),
            lambda row: one.matches(row) or other.matches(row),
            lambda row: one.contrary(row) and other.contrary(row),
        ),
        inner,
        inner,
    )


def _has(row: Row, name: str, test: Callable[[Any], bool]) -> bool:
    return row[name] is not None and test(row[name])


def _has_not(row: Row, name: str, test: Callable[[Any], bool]) -> bool:
    return row[name] is not None and not test(row[name])


def _told(values: set[Any]) -> set[Any]:
    return {_literal(value) for value in values}


def _literal(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.date) else value
