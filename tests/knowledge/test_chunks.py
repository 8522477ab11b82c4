"""Chunks: they hold everything once, fit the model, and stay where they are when something else changes."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.blocks import blocks, body_start, finer, plain
from pkm_pipelines.knowledge.chunks import SCHEMA, chunk_notes, search_tags
from pkm_pipelines.knowledge.embed_hashing import HashingEmbedder
from pkm_pipelines.knowledge.sections import CHARACTERS_PER_TOKEN
from pkm_pipelines.model import ids
from pkm_pipelines.model.tables import note_embeddings
from tests.support.notes import batch, note, vault

COUNTER = HashingEmbedder()


def words(count: int, seed: int = 0) -> str:
    """A paragraph of `count` words that no other seed has."""
    return " ".join(f"w{seed}x{i}" for i in range(count))


def chunk(content: str | None, max_tokens: int = 50, **values: Any) -> list[dict[str, Any]]:
    """The chunks of one note, after checking what holds for all chunks."""
    row = note(content, **values)
    found = chunk_notes(batch([row]), COUNTER, max_tokens).to_pylist()
    check(row, found, max_tokens)
    return found


def check(row: dict[str, Any], chunks: list[dict[str, Any]], max_tokens: int) -> None:
    content = row["content"]
    assert [c["position"] for c in chunks] == list(range(len(chunks)))
    assert len({c["chunk_id"] for c in chunks}) == len(chunks)
    assert COUNTER.count_tokens([c["embedded_text"] for c in chunks]) == [c["token_count"] for c in chunks]
    for c in chunks:
        assert c["token_count"] <= max_tokens or c["end"] - c["start"] <= 1
        assert c["text_hash"] == ids.sha256(c["embedded_text"].encode())
        assert c["embedded_text"].strip()
        assert 0 <= c["quality_score"] <= 1
    if content is None or not content[body_start(content) :].strip():
        return
    edge = body_start(content)
    for c in chunks:
        assert not content[edge : c["start"]].strip(), "text is left out"
        assert edge <= c["start"] < c["end"]
        assert c["text"] == content[c["start"] : c["end"]]
        edge = c["end"]
    assert not content[edge:].strip(), "text is left out"


def test_a_short_note_is_one_chunk_under_its_title() -> None:
    (only,) = chunk("Notes on tea.\n\nGreen and black.", path="drinks/Tea.md")
    assert only["text"] == "Notes on tea.\n\nGreen and black."
    assert only["embedded_text"] == "Tea\n\nNotes on tea.\nGreen and black."
    assert only["heading_path"] == ""
    assert only["chunk_id"] == ids.chunk_id("drinks/Tea.md", only["text_hash"], 0)


def test_the_schema_is_that_of_the_vector_table() -> None:
    table = note_embeddings(4).arrow
    assert {f.name for f in table} - {f.name for f in SCHEMA} == {
        "embedding", "model", "created_at", "source_table", "iceberg_snapshot_id", "processing_stage"
    }  # fmt: skip
    assert all(SCHEMA.field(f.name).equals(f) for f in table if f.name in SCHEMA.names)


@pytest.mark.parametrize("content", ["", " \n\n", "---\ntitle: Empty\n---\n", "---\na: b\n---\n\n  \n"])
def test_a_note_without_text_is_found_by_its_title(content: str) -> None:
    (only,) = chunk(content, title="An empty note")
    assert (only["text"], only["start"], only["end"]) == ("An empty note", 0, 0)
    assert only["embedded_text"] == "An empty note"


def test_a_deleted_note_has_no_chunk() -> None:
    assert chunk(None) == []


def test_a_note_without_a_title_goes_by_its_file() -> None:
    assert chunk("", title=None, path="a/b c.md")[0]["text"] == "b c"


def test_front_matter_is_no_prose() -> None:
    (only,) = chunk("---\ntitle: Tea\ntags: [a]\n---\n# Tea\n\nGreen.")
    assert only["text"] == "# Tea\n\nGreen."
    assert only["embedded_text"] == "Tea\n\nTea\nGreen."
    (rule,) = chunk("--- \nnot closed: front matter")
    assert rule["text"].startswith("---")


def test_sections_are_not_mixed() -> None:
    content = f"# One\n\n{words(30, 1)}\n\n# Two\n\n{words(30, 2)}\n\n## Two A\n\n{words(30, 3)}\n"
    first, second, third = chunk(content, title="Note")
    assert [c["heading_path"] for c in (first, second, third)] == ["One", "Two", "Two > Two A"]
    assert first["embedded_text"].startswith("Note\n\nOne\nw1x0")
    assert third["embedded_text"].startswith("Note > Two\n\nTwo A\nw3x0")


def test_a_long_section_repeats_its_heading_path() -> None:
    content = "# One\n\n## Sub\n\n" + "\n\n".join(words(12, i) for i in range(12))
    found = chunk(content, title="Note")
    assert len(found) > 3
    assert {c["heading_path"] for c in found} == {"One > Sub"}
    assert found[0]["embedded_text"].startswith("Note\n\nOne\nSub\nw0x0")
    assert all(c["embedded_text"].startswith("Note > One > Sub\n\nw") for c in found[1:])


def test_small_sections_under_one_heading_share_a_chunk() -> None:
    content = "# Words\n\n" + "\n\n".join(f"## {name}\n\nmeans {name}" for name in ("ant", "bee", "cat"))
    content += f"\n\n# Other\n\n{words(30)}"
    first, second = chunk(content, title="Note")
    assert first["heading_path"] == "Words"
    assert first["embedded_text"] == "Note\n\nWords\nant\nmeans ant\nbee\nmeans bee\ncat\nmeans cat"
    assert second["heading_path"] == "Other"


def test_no_heading_is_left_behind_alone() -> None:
    content = f"# Note\n\n## One\n\n{words(46, 1)}\n\n## Two\n\n### Deep\n\n{words(44, 2)}\n\n{words(40, 3)}"
    for c in chunk(content, title="Note"):
        assert "x" in c["embedded_text"].rpartition("\n")[2], c["embedded_text"]


@pytest.mark.parametrize(
    "block",
    [
        "```python\n" + "\n\n".join(f"line_{i} = {i}" for i in range(9)) + "\n```",
        "~~~\n# no heading\n\n```\n\ntext\n~~~",
        "| a | b |\n|---|---|\n" + "\n".join(f"| {i} | x |" for i in range(10)),
        "- item one\n  more of it\n- item two\n- item three",
        "> [!note] Callout\n> with lines\n>\n> and more",
    ],
)
def test_a_block_that_fits_is_not_cut(block: str) -> None:
    content = f"{words(30, 1)}\n\n{block}\n\n{words(30, 2)}\n\n{words(30, 3)}"
    assert sum(block in c["text"] for c in chunk(content)) == 1


@pytest.mark.parametrize(
    ("block", "starts"),
    [
        ("```\n" + "\n".join(f"line {i} of the long code" for i in range(40)) + "\n```", ("```", "line")),
        ("\n".join(f"- item {i} of the list\n  goes on here" for i in range(30)), ("-",)),
        ("| a | b |\n|---|---|\n" + "\n".join(f"| row {i} | with words |" for i in range(60)), ("|",)),
        (" ".join(f"Sentence {i} has six words. And more!" for i in range(40)), ("Sentence", "And")),
        ("".join(f"这是第{i}句话。" for i in range(60)), ("这",)),
        (" ".join(f"word{i}" for i in range(500)), ("word",)),
    ],
)
def test_a_block_that_is_too_long_is_cut_where_it_hurts_least(block: str, starts: tuple[str, ...]) -> None:
    found = chunk(block)
    assert len(found) > 3
    assert all(c["text"].startswith(starts) for c in found)
    assert sum(c["token_count"] for c in found) / len(found) > 20


def test_a_word_of_any_length_comes_to_an_end() -> None:
    assert max(c["end"] - c["start"] for c in chunk("x" * 100_000)) <= 50 * CHARACTERS_PER_TOKEN
    assert len(chunk("漢" * 1000)) >= 20


def test_equal_text_has_ids_of_its_own() -> None:
    paragraph = words(40)
    found = chunk(f"# A\n\n{paragraph}\n\n# A\n\n{paragraph}\n", title="t")
    assert len(found) == 2
    assert found[0]["text_hash"] == found[1]["text_hash"]
    assert found[1]["chunk_id"] == ids.chunk_id("note.md", found[1]["text_hash"], 1)


def test_titles_and_headings_of_any_length_leave_room() -> None:
    content = f"# {words(80, 1)}\n\n## {words(80, 2)}\n\n{words(100, 3)}"
    for c in chunk(content, title=words(200, 4)):
        assert c["token_count"] <= 50


def test_line_ends_of_windows_and_a_byte_order_mark() -> None:
    (only,) = chunk("\ufeff---\r\ntitle: x\r\n---\r\n# Head\r\n\r\nText here.\r\n\r\n```\r\ncode\r\n```\r\n", title="x")
    assert only["text"].startswith("# Head\r\n")
    assert only["text"].endswith("```")


def test_tags_are_searched_in_lower_case_with_their_parents() -> None:
    assert search_tags(["Work/Acme/Q1", "work", "étude", "a//b"]) == [
        "work", "work/acme", "work/acme/q1", "étude", "a", "a/b"
    ]  # fmt: skip
    assert chunk("#Work/Acme text")[0]["tags"] == ["work", "work/acme"]


@pytest.mark.parametrize(
    ("markdown", "said"),
    [
        ("see [the docs](https://example.com/a_(b)?q=1) now", "see the docs now"),
        ("![a cat](data:image/png;base64,AAAA) here", "a cat here"),
        ("[[Note]] and [[Folder/Note#Head|shown]] and ![[pic.png|300]]", "Note and shown and pic.png"),
        ("**bold** and ==marked== and ~~gone~~ and `code`", "bold and marked and gone and code"),
        ("## Heading", "Heading"),
        ("> quoted\n> more", "quoted\nmore"),
        ("text <!-- hidden --> on <span class='x'>here</span>", "text on here"),
        ("%%secret%% shown ^block-1", "shown"),
        ("a < b and c > d, List<String>", "a < b and c > d, List<String>"),
        ("[not a link] (x) [[ unclosed", "[not a link] (x) [[ unclosed"),
    ],
)
def test_the_model_reads_what_markdown_says(markdown: str, said: str) -> None:
    assert plain(markdown) == said


@pytest.mark.parametrize(
    "text",
    [
        "[" * 50_000, "[](" * 30_000, "[[" * 40_000, "<!--" * 30_000, "%%" * 40_001, "<a " * 40_000, "(" * 60_000,
        "[a](b" * 20_000, "[]((" * 20_000, '[](x "' * 20_000, "> " * 50_000, " ^a" * 40_000, "`" * 60_000,
        "---\n" * 20_000, "```\n" * 20_000,
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_hostile_text_takes_no_longer(text: str) -> None:
    plain(text)
    chunk(text, max_tokens=100, headings=[])


INLINE = st.sampled_from(
    [
        "plain words here", "a [link](http://x.y/z)", "[[Note|alias]]", "**bold**", "`code`", "漢字かな。", "End.",
        "¿Qué?", "#tag", "%%c%%",
    ]
)  # fmt: skip
PARAGRAPH = st.lists(INLINE, min_size=1, max_size=12).map(" ".join)
BLOCK = st.one_of(
    PARAGRAPH,
    PARAGRAPH,
    st.tuples(st.integers(1, 4), st.sampled_from("ABCD")).map(lambda h: f"{'#' * h[0]} {h[1]}"),
    st.lists(PARAGRAPH, min_size=1, max_size=5).map(lambda items: "\n".join(f"- {item}" for item in items)),
    st.lists(INLINE, max_size=6).map(lambda lines: "```\n" + "\n".join(lines) + "\n```"),
    st.just("---"),
    st.just("Setext\n==="),
    st.just("> # quoted heading\n> text"),
    st.text(max_size=30),
)
MARKDOWN = st.tuples(st.sampled_from(["", "---\na: 1\n---\n", "\ufeff"]), st.lists(BLOCK, max_size=14)).map(
    lambda parts: parts[0] + "\n\n".join(parts[1])
)


def test_chunks_hold_all_text_once_and_fit(budget: int) -> None:
    @settings(max_examples=150 * budget)
    @given(MARKDOWN | st.text(max_size=300), st.integers(16, 120))
    def check_note(content: str, max_tokens: int) -> None:
        chunk(content, max_tokens)

    check_note()


@settings(max_examples=100)
@given(MARKDOWN)
def test_blocks_and_their_parts_lose_nothing(content: str) -> None:
    def cover(spans: list[Any], start: int, end: int) -> None:
        for block in spans:
            assert not content[start : block.start].strip()
            assert content[block.start : block.end] == content[block.start : block.end].strip() != ""
            start = block.end
        assert not content[start:end].strip()

    found = list(blocks(content, 0, len(content)))
    cover(found, 0, len(content))
    for block in found:
        while block.end - block.start > 1:
            parts = finer(content, block)
            cover(parts, block.start, block.end)
            assert all(part.end - part.start < block.end - block.start for part in parts)
            block = parts[0]


def test_a_foreign_batch_of_headings_does_no_harm() -> None:
    """Spans that do not fit the text (another version of the parser) may cut badly, but lose nothing."""
    headings = [
        {"level": 1, "text": "x", "anchor": "", "start": 900, "end": 990},
        {"level": 2, "text": None, "anchor": "", "start": 3, "end": 4},
        {"level": 2, "text": "back", "anchor": "", "start": 0, "end": 1},
    ]
    chunk("some text\nof two lines", headings=headings)


def new_chunks(before: str, after: str, max_tokens: int = 50) -> int:
    old = {c["chunk_id"] for c in chunk(before, max_tokens)}
    return sum(c["chunk_id"] not in old for c in chunk(after, max_tokens))


@pytest.mark.parametrize("seed", range(5))
def test_an_edit_at_the_start_of_a_long_section_does_not_reach_its_end(seed: int) -> None:
    """Ordinary chunking by size would shift all of the 80 chunks behind the edit."""
    lengths = random.Random(seed)
    paragraphs = [words(lengths.randint(4, 25), seed * 1000 + i) for i in range(200)]
    before = "\n\n".join(paragraphs)
    assert len(chunk(before)) > 70
    changed = [f"{paragraphs[0]} changed", *paragraphs[1:]]
    inserted = [words(20, 99_999), *paragraphs]
    for after in (changed, inserted, paragraphs[1:]):
        assert new_chunks(before, "\n\n".join(after)) <= 6


def test_an_edit_of_one_paragraph_changes_two_chunks_of_a_real_note_at_most(shared_data: Path, budget: int) -> None:
    """Measured over the garden: half of the edits change one chunk, and all but a few no more than three."""
    notes = vault(shared_data / "vaults" / "jackyzha0-garden")[:: max(1, 8 // budget)]
    picker = random.Random(1)
    paragraph = re.compile(r"(?:^|\n\n)([^\n#`|-][^\n]{30,})(?=\n\n|$)")
    counts: list[int] = []
    for row in notes:
        content = row["content"]
        if found := list(paragraph.finditer(content, body_start(content))):
            start, end = picker.choice(found).span(1)
            some = content[start:end].split(" ")
            some.insert(picker.randrange(len(some)), "a few words that were not here before")
            counts.append(new_chunks(content, content[:start] + " ".join(some) + content[end:], 200))
    counts.sort()
    assert len(counts) > 50
    assert counts[len(counts) // 2] == 1
    assert counts[len(counts) * 9 // 10] <= 2
    assert sum(counts) / len(counts) < 1.5
