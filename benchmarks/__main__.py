"""Runs every benchmark with its defaults, one after the other: `python -m benchmarks [NAME …]`.

Each is a module of its own with options for its peers (`python -m benchmarks.parse --help`). They time whole
processes on this machine: run them on one that does nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    """Run the named benchmarks, or all of them; returns how many failed."""
    known = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    wanted = sys.argv[1:] or known
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"no benchmark is called {', '.join(unknown)} (there are: {', '.join(known)})")
    failed = 0
    for name in wanted:
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
