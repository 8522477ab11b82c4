"""What holds for every text: parsing never raises, spans hold what they claim, nothing depends on what is around."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pkm_pipelines.knowledge.frontmatter import canonical
from pkm_pipelines.knowledge.markdown import parse_note, prose_spans
from pkm_pipelines.knowledge.note import Flavour, ParsedNote
from tests.conftest import BUDGETS, budget_name
from tests.support.note_spans import check_spans

EXAMPLES = 300 * BUDGETS[budget_name()]
FRAGMENTS = (
    *("# ", "## ", "\n", "\n\n", "\n- ", "\n> ", "\n\t- ", "- ", "* ", "1. ", "> ", "[ ] ", "[x] ", "    ", "\t", " "),
    *(
        "[[",
        "]]",
        "![[",
        "|",
        "\\|",
        "[",
        "](",
        ")",
        "#",
        "^",
        "^id",
        "`",
        "```",
        "~~~",
        "$",
        "$$",
        "%%",
        "*",
        "**",
        "_",
        "~~",
    ),
    *(
        "<!--",
        "-->",
        "<div>",
        "</div>",
        "<b>",
        "<br>",
        "<a href='",
        "\\",
        "&",
        "&amp;",
        ":",
        "::",
        "{{",
        "}}",
        "((",
        "))",
    ),
    *(
        "\nid:: ",
        "\ntags:: ",
        "TODO ",
        "DONE ",
        "{{embed ",
        ":LOGBOOK:",
        ":END:",
        "---",
        "===",
        "\n|a|b|\n|---|---|\n|",
    ),
    *(
        "[^1]",
        "\n[^1]: ",
        "\n[r]: x.md",
        "[r]",
        "https://x.y/",
        "#tag",
        "#a/b",
        "#1",
        "x.md",
        "a%20b.md",
        "Note#h",
        "> [!n]- t",
    ),
    *("a", "word ", "é", "😀", "字", "a\u0308", "\u200b", "\u00a0", "\ufeff", "\r", "\r\n", "\x00", "\x0c", "\u2028"),
)
YAML = (
    *(
        "a: ",
        "title: ",
        "tags: ",
        "created: ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!x ",
        "'",
        '"',
        "\n",
        "\n  ",
        ": ",
    ),
    *("x", "1", "~", "2024-01-01", "{{date}}", "<% x %>", "|\n", "#", ",", "[[n]]", "\\ud800", "\\", "é", "😀", "\t"),
)
FLAVOURS: st.SearchStrategy[Flavour] = st.sampled_from(["obsidian", "logseq"])

markdown = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=60).map("".join)
front_matter = st.one_of(
    st.just(""),
    st.lists(st.sampled_from(YAML), max_size=25).map(lambda parts: "---\n" + "".join(parts) + "\n---\n"),
    st.text(max_size=30).map(lambda text: f"---\n{text}\n---\n"),
)
notes = st.builds(str.__add__, front_matter, markdown)


def content_of(note: ParsedNote) -> tuple[object, ...]:
    """What a note says, without where it stands."""
    return (
        note.text,
        note.front_matter,
        note.tags,
        [(heading.level, heading.text) for heading in note.headings],
        [(task.status, task.text) for task in note.tasks],
        [tuple(callout[:3]) for callout in note.callouts],
        [block.id for block in note.block_ids],
        [tuple(link[:6]) for link in note.links],
    )


@settings(max_examples=EXAMPLES)
@given(notes, FLAVOURS)
@example("[[a]]" * 3 + "\ud800\x00[[b]] #t", "obsidian")
@example("- [ ] \n\t- [x]\t\n> - [ ] a\n", "obsidian")
def test_every_text_is_parsed_and_every_span_is_right(content: str, flavour: Flavour) -> None:
    note = parse_note(content, "a/b.md", flavour=flavour)
    check_spans(note)
    assert len(note.content) == len(content)
    assert note == parse_note(content, "a/b.md", flavour=flavour)
    assert note.text == note.text.strip()
    assert (note.word_count == 0) or (note.character_count > 0 and note.reading_seconds > 0)
    assert len({tag.casefold() for tag in note.tags}) == len(note.tags)


@settings(max_examples=EXAMPLES)
@given(st.text(alphabet=st.characters(), max_size=200), FLAVOURS)
def test_every_string_is_parsed(content: str, flavour: Flavour) -> None:
    check_spans(parse_note(content, "x.md", flavour=flavour))


@settings(max_examples=EXAMPLES)
@given(notes)
def test_what_is_found_fits_into_arrow(content: str) -> None:
    """Every text of a note is valid Unicode, front matter with its escapes included."""
    note = parse_note(content, "x.md")
    texts = [note.title, note.text, canonical(note.front_matter), *note.tags, *note.aliases]
    texts += [link.target for link in note.links] + [link.display for link in note.links]
    texts += [problem.message for problem in note.problems]
    assert pa.array(texts, pa.string()).to_pylist() == texts


@settings(max_examples=EXAMPLES)
@given(markdown)
def test_prose_is_in_order_and_apart_from_links_and_tags(content: str) -> None:
    spans = prose_spans(content)
    bounds = [bound for span in spans for bound in span]
    assert bounds == sorted(bounds)
    note = parse_note(content, "x.md")
    for marked in [*note.links, *note.tag_spans]:
        if marked.start is not None and marked.end is not None:
            inside = [span for span in spans if span[0] < marked.end and marked.start < span[1]]
            assert inside == [], (marked, inside)


@settings(max_examples=EXAMPLES)
@given(markdown, st.sampled_from(["Vorwort é😀字", "x" * 50, "\u00a0"]))
def test_a_paragraph_before_moves_spans_and_changes_nothing(content: str, before: str) -> None:
    if content.startswith(("---", "\ufeff")) or "]:" in content:
        return  # front matter, and definitions of references, which hold for the whole note
    shift = len(before) + 2
    alone, moved = parse_note(content, "x.md"), parse_note(f"{before}\n\n{content}", "x.md")
    for name in ("headings", "tag_spans", "tasks", "callouts", "links"):
        expected = [item._replace(start=item.start + shift, end=item.end + shift) for item in getattr(alone, name)]
        assert getattr(moved, name) == expected


@settings(max_examples=EXAMPLES)
@given(notes.filter(lambda content: "\r" not in content and not content.startswith("\ufeff")))
def test_windows_line_ends_say_the_same(content: str) -> None:
    """But for the text of inline code over a line end, which pulldown-cmark gives one blank more."""
    windows = content_of(parse_note("\ufeff" + content.replace("\n", "\r\n"), "x.md"))
    plain = content_of(parse_note(content, "x.md"))
    assert windows[1:] == plain[1:]
    assert windows[0] == plain[0] or "`" in content


PILES = {
    "open brackets": "[",
    "open wikilinks": "[[",
    "embeds": "![[",
    "bars": "[[|a]]",
    "wikilinks": "[[a]]",
    "open links": "[a](",
    "references": "[a]",
    "definitions": "[a]: b\n",
    "footnotes": "[^1]: ",
    "quotes": "> ",
    "callouts": "> [!n] ",
    "lists": "- ",
    "empty items": "- \n",
    "numbers": "1) ",
    "emphasis": "*a _b ",
    "backticks": "`",
    "fences": "```\n",
    "fences of many languages": "```a{}\n```\n",
    "tildes": "~~~ a\n",
    "math": "$$ $",
    "comments": "%%\n",
    "inline comments": "a %% b ",
    "html": "<a b='",
    "html comments": "<!--",
    "html blocks": "<div>\n\n",
    "declarations": "<![CDATA[",
    "bars of tables": "|",
    "hashes": "#",
    "headings": "# ",
    "tags": " #a",
    "carets": " ^a\n\n",
    "urls": "http://a) ",
    "schemes": "http://",
    "entities": "&#x41;",
    "backslashes": "\\",
    "blanks": "    ",
    "line ends": "\n",
    "tabs": "\t",
    "returns": "\r",
    "emoji": "😀 ",
    "log books": ":LOGBOOK:\n",
    "properties": "- key:: v\n  id:: x\n",
    "macros": "{{embed ",
    "block references": "((",
    "front matter": "---\n",
    "prose": "Lorem ipsum dolor #tag [[Link|x]] `code` **b** https://x.y/z?a=b.\n\n",
}
SIZE = 200_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("flavour", ["obsidian", "logseq"])
@pytest.mark.parametrize("pile", list(PILES))
def test_piles_take_linear_time(pile: str, flavour: Flavour) -> None:
    """200 kB of one thing over and over takes a fraction of a second; anything quadratic would take minutes."""
    unit = PILES[pile]
    content = "".join([unit.replace("{}", str(number)) for number in range(SIZE // len(unit))])
    note = parse_note(content, "x.md", flavour=flavour)
    assert len(note.content) == len(content)


@pytest.mark.timeout(60)
def test_a_note_of_five_megabytes() -> None:
    content = PILES["prose"] * (5_000_000 // len(PILES["prose"]))
    note = parse_note(content, "x.md")
    repeats = content.count("#tag")
    assert len(note.tag_spans) == repeats
    assert len(note.links) == 2 * repeats
    assert note.links[-1].target == "https://x.y/z?a=b"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a: " + "[" * 100_000, "front-matter-too-deep"),
        ("{" * 100_000, "front-matter-too-deep"),
        ("- " * 100_000, "front-matter-too-deep"),
        ("? " * 100_000, "front-matter-too-deep"),
        ('{"a":' * 40_000, "front-matter-too-deep"),
        ("a: " + "x" * 300_000, "front-matter-too-large"),
        ("\n".join(f"k{number}: v" for number in range(20_001)), "front-matter-too-many-values"),
        ("a: {{" * 20_000, "templated-front-matter"),
        ("a: {{date}}\n" * 5_000, "templated-front-matter"),
    ],
    ids=["lists", "mappings", "items", "keys", "json", "long", "many", "templates", "template lines"],
)
def test_front_matter_is_bounded(text: str, code: str) -> None:
    note = parse_note(f"---\n{text}\n---\n#body", "x.md")
    assert code in [problem.code for problem in note.problems]
    assert note.tags == ["body"]
    assert len(note.problems) < 50
