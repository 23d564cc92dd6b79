"""What weakens the attacks: images and steps per message, the size of phi, noise. One thing at a time, controls beside it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hyperfed.data import Dataset
from hyperfed.privacy.lab import CASES, Attempt, Setting, play
from hyperfed.privacy.summary import summary

ROWS = ("FedAvg: DLG", "FedPer: DLG, head guessed", "HFN: structured, no secret", "HFN: DLG, oracle")
SWEEP: dict[str, tuple[Any, ...]] = {
    "steps": (1, 4, 16),
    "batch": (2, 4, 8),
    "embedding": (1, 4, 16, 32),
    "noise": (1e-4, 1e-3, 1e-2, 0.1, 1.0),
}
CHOSEN = tuple(case for case in CASES if case.title in ROWS)


def sweep(dataset: Dataset, images: int, setting: Setting) -> Iterator[tuple[str, list[Attempt], list[dict[str, Any]]]]:
    """For each changed setting: its name, every attempt, and the rows' summary."""
    for field, values in SWEEP.items():
        for value in values:
            count = max(images, value) if field == "batch" else images
            attempts = [line for line, _ in play(dataset, count, 1, replace(setting, **{field: value}), CHOSEN)]
            name = f"{field}={value:g}"
            yield name, attempts, [{"setting": name, **row} for row in summary(attempts, CHOSEN)]


def sweep_table(rows: list[dict[str, Any]]) -> str:
    """Median PSNR, one line for each setting."""
    by_setting: dict[str, dict[str, str]] = {}
    for row in rows:
        by_setting.setdefault(row["setting"], {})[row["row"]] = f"{row['psnr_median']:.1f}" if row["evals_median"] else "not applicable"
    head = f"| setting | {' | '.join(ROWS)} |\n|---|{'---:|' * len(ROWS)}\n"
    return head + "".join(f"| {name} | {' | '.join(cells[r] for r in ROWS)} |\n" for name, cells in by_setting.items())
