"""What a note says: small notes of our own with what is to be found in them, and whole batches."""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pkm_pipelines.knowledge.frontmatter import canonical
from pkm_pipelines.knowledge.markdown import parse_note, parse_notes, prose_spans
from pkm_pipelines.knowledge.note import ParsedNote
from pkm_pipelines.model.tables import PROCESSED_NOTES, RAW_NOTES
from tests.support.note_spans import check_spans

CASES: list[dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[1] / "data" / "knowledge" / "markdown_cases.toml").read_text(encoding="utf-8")
)["case"]
UTC = dt.UTC


def found_in(note: ParsedNote) -> dict[str, Any]:
    """A parsed note in the terms of the cases."""
    return {
        "title": note.title,
        "aliases": note.aliases,
        "tags": note.tags,
        "links": [[link.kind, link.target + (link.subpath or ""), link.display] for link in note.links],
        "headings": [[heading.level, heading.text, heading.anchor] for heading in note.headings],
        "tasks": [[task.status, task.text] for task in note.tasks],
        "callouts": [[callout.type, callout.title or "", callout.fold or ""] for callout in note.callouts],
        "blocks": [[block.id, note.content[block.start : block.end]] for block in note.block_ids],
        "languages": note.code_languages,
        "footnotes": [footnote.label for footnote in note.footnotes],
        "text": "\n".join(line.rstrip() for line in note.text.splitlines()),
        "problems": [problem.code for problem in note.problems],
    }


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case: dict[str, Any]) -> None:
    expected = {key: value for key, value in case.items() if key not in ("name", "flavour", "content")}
    assert expected, "a case that expects nothing proves nothing"
    if "text" in expected:
        expected["text"] = expected["text"].strip()
    note = parse_note(case["content"], "folder/note.md", flavour=case.get("flavour", "obsidian"))
    found = found_in(note)
    assert {key: found[key] for key in expected} == expected
    check_spans(note)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_line_ends_and_byte_order_mark_change_nothing(case: dict[str, Any]) -> None:
    """A note saved on Windows says the same."""
    flavour = case.get("flavour", "obsidian")
    plain = found_in(parse_note(case["content"], "note.md", flavour=flavour))
    windows = parse_note("\ufeff" + case["content"].replace("\n", "\r\n"), "note.md", flavour=flavour)
    check_spans(windows)
    found = found_in(windows)
    found["blocks"] = [[name, block.replace("\r\n", "\n")] for name, block in found["blocks"]]
    assert found == plain


def test_offsets_count_characters_of_the_content() -> None:
    content = "---\ntitle: ünï 😀\n---\n# Größe 😀 [[Ziel|😀]] #täg\n\n- [ ] 任务 #标签 ![[图.png]]"
    note = parse_note(content, "x.md")
    assert [content[tag.start : tag.end] for tag in note.tag_spans] == ["#täg", "#标签"]
    assert [content[link.start : link.end] for link in note.links] == ["[[Ziel|😀]]", "![[图.png]]"]
    assert content[note.tasks[0].start : note.tasks[0].end] == "- [ ] 任务 #标签 ![[图.png]]"
    assert content[note.headings[0].start : note.headings[0].end] == "# Größe 😀 [[Ziel|😀]] #täg"


@pytest.mark.parametrize(
    ("properties", "created", "updated"),
    [
        ("created: 2024-05-31", dt.datetime(2024, 5, 31, tzinfo=UTC), None),
        ("created: 2024-05-31T10:00:00+02:00", dt.datetime(2024, 5, 31, 8, tzinfo=UTC), None),
        ("Date Created: 2024-05-31 9:05", dt.datetime(2024, 5, 31, 9, 5, tzinfo=UTC), None),
        ("date: 2024/5/3", dt.datetime(2024, 5, 3, tzinfo=UTC), None),
        ("date: 20240531", dt.datetime(2024, 5, 31, tzinfo=UTC), None),
        ("date: 2020-01-01\ncreated: 2021-01-01", dt.datetime(2021, 1, 1, tzinfo=UTC), None),
        ("created: '[[journal/2024-05-31|that day]]'", dt.datetime(2024, 5, 31, tzinfo=UTC), None),
        ("created-at: 1717142400000\nlast_modified: 1717142400", *[dt.datetime(2024, 5, 31, 8, tzinfo=UTC)] * 2),
        ("updated: 2024-05-31T10:00:00Z", None, dt.datetime(2024, 5, 31, 10, tzinfo=UTC)),
        ("created:\nupdated: ''", None, None),
        ("created: true\nupdated: [2024-05-31]", None, None),
    ],
)
def test_dates(properties: str, created: dt.datetime | None, updated: dt.datetime | None) -> None:
    note = parse_note(f"---\n{properties}\n---\n", "x.md")
    assert (note.created_at, note.updated_at, note.problems) == (created, updated, [])


@pytest.mark.parametrize("value", ["soon", "2024-13-01", "9999999999999999", "0001-01-01T00:00:00+23:00", "-1"])
def test_a_date_that_is_none_is_a_problem(value: str) -> None:
    note = parse_note(f"---\ncreated: {value}\n---\n", "x.md")
    assert note.created_at is None
    [problem] = note.problems
    assert problem.code == "unreadable-date"
    assert value in problem.message


def test_canonical_front_matter_does_not_depend_on_how_it_is_written() -> None:
    one = parse_note("---\nb: [1, 2.5, x]\na: {d: null, c: 'ü'}\n---\n", "x.md").front_matter
    two = parse_note('---\n{"a": {"c": "ü", "d": null}, "b": [1, 2.5, "x"]}\n---\n', "x.md").front_matter
    assert canonical(one) == canonical(two) == '{"a":{"c":"ü","d":null},"b":[1,2.5,"x"]}'
    assert canonical(None) is None


def test_prose_is_what_a_reader_reads() -> None:
    content = "---\na: b\n---\n# Head\n\nText `code` [[link]] more\n\n```\nfence\n```\n> [!note] Title\n"
    assert [content[start:end] for start, end in prose_spans(content)] == ["Head", "Text ", " ", " more", "Title"]


def raw_row(position: int, **values: Any) -> dict[str, Any]:
    now = dt.datetime(2024, 5, 31, 12, tzinfo=UTC)
    row = {
        "change_id": f"change-{position}",
        "lsn": position,
        "change_type": "INSERT",
        "source": "vault",
        "note_id": f"note-{position}",
        "path": f"folder/{position}.md",
        "content": f"# Note {position}",
        "content_hash": "0" * 64,
        "ordinal": 0,
        "changed_at": now,
        "ingested_at": now,
        "partition_date": now.date(),
    }
    return row | values


def parse_rows(rows: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
    batch = pa.RecordBatch.from_pylist(rows, schema=RAW_NOTES.arrow)
    arguments.setdefault("detect", lambda text: "en" if text else None)
    parsed = parse_notes(batch, arguments.pop("flavours", {}), **arguments)
    assert parsed.schema == PROCESSED_NOTES.arrow
    parsed.validate(full=True)
    return parsed.to_pylist()


def test_a_batch_has_one_row_each_and_in_order() -> None:
    content = '---\ntitle: T\ntags: [a]\ncreated: 2024-05-31\nby: "[[b]]"\n---\n# H ^x\n- [ ] do #t [[l#s]]\n> [!n] c\n'
    rows = parse_rows([raw_row(0, content=content), raw_row(1, content=""), raw_row(2)])
    assert [row["note_id"] for row in rows] == ["note-0", "note-1", "note-2"]
    assert [row["title"] for row in rows] == ["T", "1", "Note 2"]
    first = rows[0]
    assert first["content"] == content
    assert json.loads(first["front_matter"])["by"] == "[[b]]"
    assert first["created_at"] == dt.datetime(2024, 5, 31, tzinfo=UTC)
    assert first["tags"] == ["a", "t"]
    start = content.index("- [ ]")
    assert first["tasks"] == [{"status": " ", "text": "do #t [[l#s]]", "start": start, "end": start + 19}]
    assert [(link["form"], link["target"], link["subpath"], link["property"]) for link in first["links"]] == [
        ("frontmatter", "b", None, "by"),
        ("wikilink", "l", "#s", None),
    ]
    assert (first["word_count"], first["language"], first["deleted_at"]) == (6, "en", None)
    assert (rows[1]["text"], rows[1]["language"], rows[1]["word_count"]) == ("", None, 0)


def test_a_delete_becomes_a_tombstone() -> None:
    [row] = parse_rows([raw_row(0, change_type="DELETE", content=None, content_hash=None)])
    assert row["deleted_at"] == row["changed_at"]
    kept = {"note_id", "source", "path", "change_id", "changed_at", "ordinal", "lsn", "deleted_at", "problems"}
    assert {name for name, value in row.items() if value is not None} == kept


def test_bytes_are_read_where_there_is_no_text() -> None:
    [row] = parse_rows([raw_row(0, content=None, content_bytes=b"# Caf\xe9 #tag")])
    assert (row["title"], row["tags"], row["content"]) == ("Caf\ufffd #tag", ["tag"], "# Caf\ufffd #tag")


def test_problems_of_the_source_come_first() -> None:
    odd = [{"code": "invalid-utf8", "message": "not text"}]
    [row] = parse_rows([raw_row(0, content="---\na: b: c\n---\n", problems=odd)])
    assert [problem["code"] for problem in row["problems"]] == ["invalid-utf8", "invalid-front-matter"]


def test_each_source_has_its_flavour() -> None:
    content = "- TODO it\n  id:: 65f0c0de-1234-5678-9abc-def012345678"
    rows = parse_rows(
        [raw_row(0, content=content), raw_row(1, content=content, source="graph", path="pages/a___b.md")],
        flavours={"graph": "logseq"},
    )
    assert [len(row["tasks"]) for row in rows] == [0, 1]
    assert rows[1]["title"] == "a/b"


def test_no_rows() -> None:
    assert parse_rows([]) == []


def test_the_language_is_told_by_default() -> None:
    batch = pa.RecordBatch.from_pylist(
        [raw_row(0, content="Dies ist ein deutscher Text über den Garten und seine vielen Wege.")],
        schema=RAW_NOTES.arrow,
    )
    assert parse_notes(batch, {}).column("language").to_pylist() == ["de"]
