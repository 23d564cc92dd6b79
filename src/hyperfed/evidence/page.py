"""What a reproduction leaves: tables in three formats, pictures, one page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hyperfed.evidence.plans import Cell
from hyperfed.evidence.store import Store


def show(experiment: str, cells: Sequence[Cell], store: Store, work: Path, out: Path, console: Console) -> None:
    """Print and write."""
