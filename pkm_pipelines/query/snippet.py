"""What a hit shows of its chunk: the part in which the query's words stand, as a reader of the note sees it."""

from __future__ import annotations

SNIPPET_CHARACTERS = 240
_SOURCE_CHARACTERS = 20_000
_LONG_TERM = 8
# A noncharacter: stands for the dollar where formulas are to be kept as they are written.
_DOLLAR = "\ufdd0"


def snippet(text: str, query: str, heading: str = "") -> str:
    """The part of `text`, Markdown, in which most of the query's words stand, on one line; `…` marks what is cut off.

    Markup is left out, and so is a first line that only repeats the last of the headings in `heading` (joined by
    ' > '), which are shown beside it. Where words of the query stand in the markup alone (code, the target of a link),
    the text is shown as it was written.
    """
    from pkm_pipelines.knowledge.markdown import parse_note
    from pkm_pipelines.storage.lance_text import find_terms, wanted_terms

    written = _below(text[:_SOURCE_CHARACTERS], heading)
    wanted = wanted_terms(query)

    def spans(flat: str) -> list[tuple[int, int]]:
        return list(find_terms(flat, wanted))

    as_written = " ".join(written.split())
    # A rule at the very start would be read as front matter, which a chunk never holds.
    read = parse_note("\n" + written.replace("$", _DOLLAR), "").text
    as_read = " ".join(read.replace(_DOLLAR, "$").split())
    found, found_read = spans(as_written), spans(as_read)
    if not as_read or len(_words(as_written, found)) > len(_words(as_read, found_read)):
        return _cut(as_written, found)
    return _cut(as_read, found_read)


def _below(text: str, heading: str) -> str:
    first, _, rest = text.partition("\n")
    is_shown = first.startswith("#") and f" > {heading}".endswith(f" > {first.lstrip('#').strip()}")
    return rest if is_shown and rest.strip() else text


def _words(flat: str, spans: list[tuple[int, int]]) -> set[str]:
    return {flat[start:end].lower() for start, end in spans}


def _cut(flat: str, spans: list[tuple[int, int]]) -> str:
    if len(flat) <= SNIPPET_CHARACTERS:
        return flat
    best, best_weight = 0, 0
    for index, (first, _) in enumerate(spans):
        inside = _words(flat, [span for span in spans[index:] if span[1] <= first + SNIPPET_CHARACTERS * 3 // 4])
        weight = sum(min(len(word), _LONG_TERM) if word.isascii() else _LONG_TERM for word in inside)
        if weight > best_weight:
            best, best_weight = first, weight
    start = max(0, min(best - SNIPPET_CHARACTERS // 4, len(flat) - SNIPPET_CHARACTERS))
    end = start + SNIPPET_CHARACTERS
    if start and (blank := flat.find(" ", start, min(start + 30, best))) >= 0:
        start = blank + 1
    if end < len(flat) and (blank := flat.rfind(" ", end - 30, end)) >= 0:
        end = blank
    return f"{'…' if start else ''}{flat[start:end]}{'…' if end < len(flat) else ''}"
