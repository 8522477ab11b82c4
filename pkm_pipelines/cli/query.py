"""`pkm search`, `pkm sql` and `pkm note`: questions."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pkm_pipelines.cli.common import AsJson, check_given, open_lake

if TYPE_CHECKING:
    import pyarrow as pa

    from pkm_pipelines.query.note import NoteLink, NoteView
    from pkm_pipelines.query.search import Hit

SHOWN_ROWS = 1000


class SearchMode(StrEnum):
    """How notes are looked for."""

    hybrid = "hybrid"
    vector = "vector"
    text = "text"


def search(
    words: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, max=1000, help="How many notes.")] = 10,
    mode: Annotated[
        SearchMode, typer.Option("--mode", "-m", help="By meaning (vector), by words (text), or both (hybrid).")
    ] = SearchMode.hybrid,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="TAG", help="Only notes with this tag, or one nested below it.")
    ] = None,
    path: Annotated[str | None, typer.Option("--path", metavar="FOLDER", help="Only notes in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find notes by meaning and by words.

    Of each note its best passage is shown, with path and heading.
    """
    from pkm_pipelines.cli.output import print_json, say

    check_given(words, "QUERY", "what to look for")
    check_given(tag, "--tag", "a tag", beside="#/")
    check_given(path, "--path", "a folder")
    with open_lake() as lake:
        hits = lake.search(words, k=k, mode=mode.value, tag=tag, path=path)
    if as_json:
        print_json(hits)
    elif hits:
        print_hits(hits)
    else:
        say("Nothing found.")


def print_hits(hits: list[Hit]) -> None:
    """Print hits, best first: title and score, path and heading, snippet."""
    from rich.padding import Padding
    from rich.text import Text

    from pkm_pipelines.cli.output import clean, console

    out = console()
    for number, hit in enumerate(hits, 1):
        title = clean(hit.title or hit.path)
        where = clean(hit.path) + (f" › {clean(hit.heading)}" if hit.heading else "")
        out.print(Text.assemble((f"{number:>2}. ", "dim"), (title, "bold"), (f"  {hit.score:.3f}", "dim")))
        out.print(Padding(Text(where, style="cyan"), (0, 0, 0, 4), expand=False))
        out.print(Padding(Text(clean(hit.snippet)), (0, 0, 0, 4), expand=False))
        out.print()


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One statement that reads; `-` takes it from stdin.")],
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=0, help="At most so many rows; 0 for all.")
    ] = SHOWN_ROWS,
    as_json: AsJson = False,
) -> None:
    """Ask the tables in SQL.

    The tables go by `bronze.raw_notes`, `silver.processed_notes`, …, `vectors.note_embeddings`; the dialect is
    DuckDB's. `SHOW TABLES` and `DESCRIBE silver.processed_notes` tell what there is. With `--json` the answer is
    an array with one object a row. The query sees the tables and nothing else of this machine, and cannot change
    anything.
    """
    from pkm_pipelines.cli.output import print_json, say
    from pkm_pipelines.query.sql import StoredTables

    text = sys.stdin.read() if query == "-" else query
    check_given(text, "QUERY", "a statement that reads")
    with open_lake() as lake:
        # One row more tells whether there are more.
        found = lake.sql(text, limit=limit + 1 if limit else None)
        is_empty = not found.num_rows and not any(StoredTables(lake))
    more = bool(limit) and found.num_rows > limit
    rows = found.slice(0, limit) if more else found
    if as_json:
        print_json(_records(rows))
    else:
        _print_rows(rows)
    if is_empty:
        say("There are no tables yet: `pkm run` makes and fills them.")
    if more:
        say(f"Only the first {limit:,} rows are shown (--limit 0 for all).")


def _records(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as objects; columns of one name are numbered, as an object has a key but once."""
    found = rows.rename_columns(_distinct(rows.column_names)).to_pylist()
    return _spelt_out(found) if any("interval" in str(kind) for kind in rows.schema.types) else found


def _spelt_out(value: Any) -> Any:
    """`value` with intervals, at any depth, as DuckDB writes them: `1 year 2 months 3 days 04:05:06`."""
    import pyarrow as pa

    if isinstance(value, pa.MonthDayNano):
        return _interval(*value)
    if isinstance(value, dict):
        return {key: _spelt_out(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelt_out(item) for item in value]
    return value


def _interval(months: int, days: int, nanoseconds: int) -> str:
    years, rest = divmod(abs(months), 12)
    sign = -1 if months < 0 else 1
    parts = [
        f"{number} {unit}{'' if abs(number) == 1 else 's'}"
        for number, unit in ((sign * years, "year"), (sign * rest, "month"), (days, "day"))
        if number
    ]
    if nanoseconds or not parts:
        seconds, micros = divmod(abs(nanoseconds) // 1000, 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        fraction = f".{micros:06}".rstrip("0") if micros else ""
        parts.append(f"{'-' if nanoseconds < 0 else ''}{clock}{fraction}")
    return " ".join(parts)


def _distinct(names: list[str]) -> list[str]:
    taken = set(names)
    seen: set[str] = set()
    result: list[str] = []
    for name in names:
        number, found = 2, name
        while found in seen or (found != name and found in taken):
            found, number = f"{name}_{number}", number + 1
        seen.add(found)
        result.append(found)
    return result


def _print_rows(rows: pa.Table) -> None:
    import pyarrow as pa

    from pkm_pipelines.cli.output import print_table

    if rows.column_names == ["explain_key", "explain_value"]:
        _print_plans(rows)
        return
    names = _distinct(rows.column_names)
    numbers = [
        name
        for name, kind in zip(names, rows.schema.types, strict=True)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    ]
    print_table(names, [tuple(row.values()) for row in _records(rows)], right=numbers)


def _print_plans(rows: pa.Table) -> None:
    """Print what EXPLAIN answers, a drawing over many lines, as it is drawn."""
    from rich.text import Text

    from pkm_pipelines.cli.output import clean, console

    out = console()
    for plan in rows["explain_value"].to_pylist():
        for line in str(plan).splitlines():
            out.print(Text(clean(line)), soft_wrap=True)


def note(
    name: Annotated[str, typer.Argument(metavar="PATH|ID", help="Path, end of a path, title, alias or id of a note.")],
    as_json: AsJson = False,
) -> None:
    """Show one note and its neighbourhood.

    Its front matter, links, backlinks and history, and the address that opens it in Obsidian.
    """
    from pkm_pipelines.cli.output import print_json

    check_given(name, "PATH|ID", "a path, title, alias or id of a note")
    with open_lake() as lake:
        view = lake.note(name)
    if as_json:
        print_json(view)
    else:
        _print_note(view)


def _print_note(view: NoteView) -> None:
    from rich.text import Text

    from pkm_pipelines.cli.output import cell_text, clean, console, print_table

    out = console()
    out.print(Text(clean(view.title or view.path), style="bold"))
    facts = {
        "path": f"{view.source}:{view.path}",
        "id": view.note_id,
        "aliases": ", ".join(view.aliases),
        "tags": " ".join(f"#{tag}" for tag in view.tags),
        "words": "" if view.word_count is None else f"{view.word_count:,}",
        "language": view.language or "",
        "changed": cell_text(view.changed_at),
        "deleted": cell_text(view.deleted_at),
        "open": view.obsidian_url or "",
        **{f"problem {item['code']}": item["message"] for item in view.problems},
    }
    for key, value in facts.items():
        if value:
            out.print(Text.assemble((f"  {clean(key):<9} ", "dim"), clean(value)))
    front_matter = [(key, cell_text(value)) for key, value in view.front_matter.items()]
    if front_matter:
        out.print()
        print_table(("front matter", "value"), front_matter)
    edges = {
        "links": view.links,
        "backlinks": view.backlinks,
        "mentions": view.mentions,
        "mentioned by": view.mentioned_by,
    }
    for title, links in edges.items():
        if links:
            out.print()
            print_table((title, "kind", "status", "as written"), [_link_row(link) for link in links])
    out.print()
    print_table(
        ("history", "change", "path", "commit", "author"),
        [
            (
                event.changed_at,
                event.change_type,
                f"{event.previous_path} → {event.path}" if event.previous_path else event.path,
                (event.commit_id or "")[:10],
                event.author,
            )
            for event in view.history
        ],
    )


def _link_row(link: NoteLink) -> tuple[object, ...]:
    from pkm_pipelines.cli.output import styled

    style = {"broken": "red", "external": "dim"}.get(link.status, "")
    return (styled(link.path or link.raw_target, style), link.kind, styled(link.status, style), link.raw_target)
