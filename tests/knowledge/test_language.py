"""Languages of short notes, and texts that have none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkm_pipelines.knowledge import language

SENTENCES = json.loads((Path(__file__).parents[1] / "data/knowledge/languages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("code", "text"), SENTENCES, ids=[f"{code}-{text[:12]}" for code, text in SENTENCES])
def test_one_sentence_is_enough(code: str, text: str) -> None:
    assert language.detect(text) == code


@pytest.mark.parametrize(
    "text",
    ["", " \n", "123 456", "2026-11-20", "!!!", "ok", "TODO", "x = 1; y = 2", "Python 3.11", "\ud800", "a1b2c3d4"],
)
def test_too_little_text_has_no_language(text: str) -> None:
    assert language.detect(text) is None


def test_a_foreign_motto_does_not_decide() -> None:
    motto = "Der Mensch ist, was er isst. " * 8
    body = "The dough rests overnight in the fridge, and in the morning it goes straight into the hot oven. " * 20
    assert language.detect(motto + body) == "en"


@given(st.text())
def test_any_text_gives_a_two_letter_code_or_none(text: str) -> None:
    code = language.detect(text)
    assert code is None or (len(code) == 2 and code.isascii() and code.islower())
    assert language.detect(text) == code


def test_a_long_text_is_only_sampled() -> None:
    text = "Une note très longue parle de la mer et du vent. "
    assert len(language._sample(text * 100_000)) <= language.SAMPLE_CHARACTERS + 2  # pyright: ignore[reportPrivateUsage]
    assert language.detect(text * 100_000) == "fr"


def test_real_vaults(shared_data: Path, budget: int) -> None:
    pytest.importorskip("pkm_pipelines.knowledge.markdown", reason="plain text comes from the parser")
    from pkm_pipelines.knowledge.markdown import parse_note

    for vault, expected in (("jackyzha0-garden", "en"), ("mdn-de-http", "de")):
        paths = sorted((shared_data / "vaults" / vault).rglob("*.md"))[: 40 * budget]
        texts = [parse_note(path.read_text(encoding="utf-8"), path.name).text for path in paths]
        codes = [language.detect(text) for text in texts if text and len(text) > 300]
        assert codes.count(expected) >= 0.93 * len(codes)
