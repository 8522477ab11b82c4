from __future__ import annotations

from pathlib import Path

from pkm_pipelines.sources.rebuild import NoteRow, rebuild
from tests.support.vaults import Reader, open_test_source, write_vault


def lose_state(reader: Reader) -> Reader:
    """A reader with the same bronze whose state was rebuilt from what silver would hold."""
    order = {change.change_id: n for n, change in enumerate(reader.changes)}
    rows = [
        NoteRow(
            note_id=change.note_id,
            path=change.path,
            content_hash=change.content_hash,
            changed_at=change.changed_at,
            lsn=(1 << 48) + order[change.change_id],
            is_deleted=change.change_type == "DELETE",
        )
        for change in reader.newest().values()
    ]
    found = Reader(changes=list(reader.changes))
    found.state.apply(rebuild("vault", rows))
    return found


def test_a_lost_index_is_rebuilt_and_nothing_is_told_twice(work: Path) -> None:
    files = {"a.md": "a", "b.md": "---\nid: x\n---\n", "c.md": "c", "d.md": "d"}
    root = write_vault(work / "v", files)
    source, reader = open_test_source(root), Reader()
    reader.read(source)
    (root / "c.md").unlink()
    (root / "d.md").rename(root / "e.md")
    reader.read(source)
    before = reader.ids()

    reader = lose_state(reader)
    assert reader.read(source) == []
    assert not [key for key in reader.state.values if ":/" in key]

    reader = lose_state(reader)
    (root / "a.md").rename(root / "moved.md")
    (root / "b.md").write_text("edited")
    write_vault(root, {"c.md": "back", "d.md": "a new one"})
    changes = {change.path: change for change in reader.read(source)}
    assert changes["moved.md"].note_id == before["a.md"]
    assert changes["moved.md"].previous_path == "a.md"
    assert changes["b.md"].note_id == "x"
    assert changes["c.md"].version > 1 << 48, "a version that it never had"
    assert changes["c.md"].change_type == "INSERT"
    assert changes["d.md"].note_id != before["e.md"], "the id made from d.md belongs to the note that left it"
    assert len({change.change_id for change in reader.changes}) == len(reader.changes)
    assert reader.contents() == {
        "b.md": b"edited",
        "c.md": b"back",
        "d.md": b"a new one",
        "e.md": b"d",
        "moved.md": b"a",
    }


def test_notes_that_stood_at_one_path_keep_apart(work: Path) -> None:
    root = write_vault(work / "v", {"a.md": "first", "keep.md": "k"})
    source, reader = open_test_source(root), Reader()
    reader.read(source)
    first = reader.ids()["a.md"]
    write_vault(root, {"b.md": "second"})
    reader.read(source)
    (root / "b.md").replace(root / "a.md")
    reader.read(source)
    reader = lose_state(reader)
    assert reader.read(source) == []
    assert reader.state.get(f"note:vault:/{first}") is not None, "the one that was replaced is parked"
    (root / "a.md").unlink()
    [delete] = reader.read(source)
    assert delete.note_id != first
