"""Real speech beside the repository; tests that need it are skipped where it is absent."""

import os
from pathlib import Path

import pytest


def emodb() -> list[Path]:
    """The recordings of EmoDB, or a skip that says where they were looked for."""
    shared = Path(
        os.environ.get("SER_SHARED") or Path(__file__).resolve().parent.parent.parent / "shared"
    )
    found = sorted((shared / "data" / "emodb").rglob("*.wav"))
    if not found:
        pytest.skip(f"no recordings of EmoDB under {shared / 'data' / 'emodb'} (set SER_SHARED)")
    return found
