"""Why a run failed, as one line for people: Dagster's events hold classes, modules and stacks around it."""

import re
from collections.abc import Iterable

from dagster_shared.error import SerializableErrorInfo

# Our own errors say what is wrong and what to do; their class adds nothing.
_OURS = re.compile(r"^pkm_pipelines(\.\w+)+: ")


def innermost(error: SerializableErrorInfo | None) -> SerializableErrorInfo | None:
    """The error at the bottom of a chain of causes."""
    while error is not None and error.cause is not None:
        error = error.cause
    return error


def message(error: SerializableErrorInfo | None) -> str:
    """What the innermost error says."""
    bottom = innermost(error)
    return _OURS.sub("", bottom.message.strip()) if bottom is not None else "failed"


def one_line(causes: Iterable[tuple[str, str]]) -> str:
    """(step, what it says) of all that failed; steps that say the same are told together."""
    steps: dict[str, list[str]] = {}
    for step, cause in causes:
        steps.setdefault(cause, []).append(step.replace("__", "."))
    return "; ".join(f"{', '.join(names)}: {cause}" for cause, names in steps.items())
