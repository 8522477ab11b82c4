"""What a link says, apart from where it leads: path, subpath, text, and whether it leaves the vault.

The rules are Obsidian's, as its help and the dumps of its own index show them: the text before the
first '#' is the path, a link without a path stays in its note, and `Note > heading` is shown where a
link brings no text of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from pkm_pipelines.knowledge.note import Link

# RFC 3986, section 3.1; of two characters at least (CommonMark, "Autolinks"), so that C: is no scheme.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,31}:")
_ANCHOR_BREAKS = re.compile(r"[:#|^\\\r\n]|%%|\[\[|]]")
_WIKILINK = re.compile(r"\[\[([^\[\]\r\n]+)\]\]")
_BARE_URL = re.compile(r"https?://[^\s<>\[\]\"'`|\\^{}\u3000-\u303f\uff00-\uff65]+")

_URL_TAIL = frozenset("?!.,:;*_~'")


def is_external(target: str, form: str) -> bool:
    """Whether a link leaves the vault.

    In Markdown syntax any scheme makes a URL. In a wikilink only `scheme://` does: `[[Re:Zero]]` is a title.
    """
    scheme = _SCHEME.match(target)
    if scheme is None:
        return form != "wikilink" and target.startswith("//")
    return form in ("markdown", "autolink") or target.startswith("//", scheme.end())


def split_target(target: str) -> tuple[str, str | None]:
    """Split a link at its first '#': the path, and the subpath with its '#' or None."""
    path, hash_sign, subpath = target.partition("#")
    return path.strip(), hash_sign + subpath.strip() if hash_sign else None


def parse_wikilink(inner: str) -> tuple[str, str | None, str] | None:
    """Read what stands between `[[` and `]]`: path, subpath, text shown. None if it is no link.

    The bar may be written `\\|`, as it must be in a table. A bar that comes first belongs to the path.
    """
    bar = inner.find("|", 1)
    link, display = (inner, "") if bar < 0 else (inner[:bar].removesuffix("\\"), inner[bar + 1 :])
    link, display = link.strip(), display.strip()
    if not link:
        return None
    if "#" not in link and ":" not in link:
        return link, None, display or link
    if is_external(link, "wikilink"):
        return link, None, display or link
    path, subpath = split_target(link)
    return path, subpath, display or default_display(link)


def parse_destination(destination: str) -> tuple[str, str | None]:
    """Read the destination of a Markdown link: path and subpath, percent-decoded; a URL stays as it is."""
    if is_external(destination, "markdown"):
        return destination, None
    path, subpath = split_target(destination)
    return _decode(path), None if subpath is None else _decode(subpath)


def read_link(kind: str, data: Mapping[str, Any], source: str, start: int, end: int, shown: list[str]) -> Link | None:
    """Read the link that pulldown-cmark has found in a span of `source`; `shown` is its text.

    None if it is no link by Obsidian's rules: a wikilink over a line end, a destination that is empty.
    """
    link_type = data["link_type"]
    if not isinstance(link_type, str):
        inner = source[start + (2 if kind == "link" else 3) : end - 2]
        parsed = parse_wikilink(inner) if "\n" not in inner else None
        return None if parsed is None else Link(kind, "wikilink", *parsed, None, start, end)
    destination: str = data["dest_url"]
    if not destination:
        return None
    if link_type == "Autolink" or link_type == "Email":
        target = destination if link_type == "Autolink" else f"mailto:{destination}"
        return Link(kind, "autolink", target, None, destination, None, start, end)
    target, subpath = parse_destination(destination)
    return Link(kind, "markdown", target, subpath, "".join(shown).strip(), None, start, end)


def default_display(link: str) -> str:
    """The text Obsidian shows for a wikilink that brings none: `Note > heading > sub`."""
    return " > ".join([part for part in link.split("#") if part]).strip()


def heading_anchor(text: str) -> str:
    """What stands for a heading behind '#' in a link: its text without the characters a link cannot hold."""
    return " ".join((_ANCHOR_BREAKS.sub(" ", text) if _ANCHOR_BREAKS.search(text) else text).split())


def find_wikilinks(text: str, start: int, end: int) -> list[tuple[str, int, int]]:
    """Find `[[…]]` in a stretch of text: (what is inside, start, end)."""
    return [(match[1], match.start(), match.end()) for match in _WIKILINK.finditer(text, start, end)]


def whole_wikilink(value: str) -> str | None:
    """What is inside if the value is one wikilink and nothing else, which is what makes a property a link."""
    match = _WIKILINK.fullmatch(value.strip())
    return match[1] if match else None


def find_urls(text: str, allowed: Callable[[int], bool]) -> list[tuple[str, int, int]]:
    """Find bare URLs that begin at an `allowed` offset: (URL, start, end).

    Punctuation at the end is not part of a URL, and a closing bracket only with its opening one (GFM, section 6.9).
    """
    found: list[tuple[str, int, int]] = []
    for match in _BARE_URL.finditer(text):
        start, end = match.span()
        if text.startswith("](", max(start - 2, 0)) or not allowed(
            start
        ):  # the destination of a link is the common case
            continue
        unmatched = text.count(")", start, end) - text.count("(", start, end)
        while text[end - 1] in _URL_TAIL or (text[end - 1] == ")" and unmatched > 0):
            unmatched -= text[end - 1] == ")"
            end -= 1
        if text[end - 1] != "/" or text[end - 2] != "/":
            found.append((text[start:end], start, end))
    return found


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:  # not an encoding of UTF-8: the percent signs are meant as they stand
        return text
