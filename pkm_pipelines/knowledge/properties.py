"""What the properties in front matter mean: title, aliases, tags, links, dates.

Tags, aliases and links follow Obsidian 1.9 and later: the keys are `tags` and `aliases` in lower case, each a list
or one text, and a property is a link when its whole value is one wikilink.
"""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache

from pkm_pipelines.knowledge.linktext import parse_wikilink, whole_wikilink
from pkm_pipelines.knowledge.note import Json, Link, Oddity
from pkm_pipelines.knowledge.tags import front_matter_tags

CREATED_KEYS = ("created", "createdat", "createdon", "datecreated", "createddate", "creationdate", "ctime", "date")
UPDATED_KEYS = (
    *("updated", "updatedat", "updatedon", "dateupdated", "updateddate", "lastupdated", "lastupdate"),
    *("modified", "modifiedat", "datemodified", "modifieddate", "lastmodified", "lastmod", "mtime"),
)
"""Usual names of the two dates, most telling first. Case, blanks, '-' and '_' do not count."""

_SEPARATORS = re.compile(r"[\s_-]+")
_LOOSE_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2}))?)?")
_EPOCH = re.compile(r"\d{10}|\d{13}")


def title(values: dict[str, Json]) -> str | None:
    """The title that front matter states, or None."""
    value = values.get("title")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None


def aliases(values: dict[str, Json]) -> list[str]:
    """The other names of the note: a list of them or one; unique, in order."""
    value = values.get("aliases")
    names = value if isinstance(value, list) else [value]
    texts = [str(name).strip() for name in names if isinstance(name, (str, int, float)) and not isinstance(name, bool)]
    return list(dict.fromkeys([text for text in texts if text]))


def tags(values: dict[str, Json], problems: list[Oddity]) -> list[str]:
    """The tags that front matter states, without '#'; what is no tag is named in `problems`."""
    found, others = front_matter_tags(values.get("tags"))
    for word in others[:10]:
        problems.append(Oddity("invalid-tag", f"front matter states {word[:80]!r} as a tag, which it cannot be"))
    return found


def links(values: dict[str, Json]) -> list[Link]:
    """The properties that are links: values that are one whole wikilink, at any depth."""
    found: list[Link] = []
    _find_links(values, "", found)
    return found


def _find_links(value: Json, key: str, found: list[Link]) -> None:
    if isinstance(value, str):
        inner = whole_wikilink(value) if value.endswith("]]") or value[-1:].isspace() else None
        parsed = parse_wikilink(inner) if inner is not None else None
        if parsed is not None:
            found.append(Link("link", "frontmatter", *parsed, key, None, None))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _find_links(item, f"{key}.{position}", found)
    elif isinstance(value, dict):
        for name, item in value.items():
            _find_links(item, f"{key}.{name}" if key else name, found)


def dates(values: dict[str, Json], problems: list[Oddity]) -> tuple[dt.datetime | None, dt.datetime | None]:
    """When the front matter says the note was created and updated; UTC, and taken as UTC where no zone is stated."""
    by_name = {_plain_key(key): value for key, value in values.items()}
    return _first_date(by_name, CREATED_KEYS, problems), _first_date(by_name, UPDATED_KEYS, problems)


@lru_cache(maxsize=4096)
def _plain_key(key: str) -> str:
    return _SEPARATORS.sub("", key).lower()


def _first_date(by_name: dict[str, Json], names: tuple[str, ...], problems: list[Oddity]) -> dt.datetime | None:
    for name in names:
        value = by_name.get(name)
        if value is None or value == "" or isinstance(value, (bool, float, list, dict)):
            continue
        date = _date(str(value).strip())
        if date is not None:
            return date
        if "{{" not in str(value) and "<%" not in str(value):
            message = f"front matter states {str(value)[:80]!r} under {name!r}, which is no date (write 2024-05-31)"
            problems.append(Oddity("unreadable-date", message))
    return None


def _date(text: str) -> dt.datetime | None:
    """Read ISO 8601 and its usual variants, seconds or milliseconds since 1970, and a link to a daily note."""
    inner = whole_wikilink(text)
    if inner is not None:
        text = inner.partition("|")[0].rpartition("/")[2].strip()
    try:
        if _EPOCH.fullmatch(text):
            return dt.datetime.fromtimestamp(int(text) / (1 if len(text) == 10 else 1000), dt.UTC)
        loose = _LOOSE_DATE.fullmatch(text)
        if loose is not None:
            year, month, day, hour, minute, second = [int(part or 0) for part in loose.groups()]
            return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)
        date = dt.datetime.fromisoformat(text)
        return date.replace(tzinfo=dt.UTC) if date.tzinfo is None else date.astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return None
