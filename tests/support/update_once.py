"""Brings a lakehouse up to date in a process to be killed: `python -m tests.support.update_once HOME VAULT`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.lake import open_lake


def main() -> None:
    home, vault = Path(sys.argv[1]), Path(sys.argv[2])
    with open_lake(home, vault, batch_notes=7, lease_seconds=5) as lake:
        lake.update(accept_deletes=True)


if __name__ == "__main__":
    main()
