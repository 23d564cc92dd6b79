"""What the attempts of a figure say, and what may be said of them: no row is called resistant without its controls."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperfed.core import UserError
from hyperfed.core.files import write_text
from hyperfed.privacy.lab import Attempt, Case
from hyperfed.privacy.metrics import SUCCESS

FAILS, SUCCEEDS = 0.1, 0.9
"""A row fails when at most this share of its images comes back with ``SUCCESS`` dB, and succeeds from that share on."""


def rows_of(attempts: Iterable[Attempt]) -> dict[str, list[Attempt]]:
    """Attempts by row, in their order."""
    out: dict[str, list[Attempt]] = {}
    for a in attempts:
        out.setdefault(a.row, []).append(a)
    return out


def success(attempts: Sequence[Attempt]) -> float:
    """The share with ``SUCCESS`` dB; attempts that ended in NaN count as failures."""
    return float(np.mean([a.psnr >= SUCCESS for a in attempts]))


def verdicts(attempts: Sequence[Attempt], cases: Sequence[Case]) -> dict[str, str]:
    """By row: recovered (in part), or below ``SUCCESS`` dB, or inconclusive. Raises where a failing row lacks a control of the same budget.

    Controls: the full gradient (must succeed), the naive attacker against a kept head, and the oracle on the same message (must succeed).
    """
    rows = rows_of(attempts)
    roles = {case.role: rows[case.title] for case in cases if case.title in rows}
    out = {}
    for case in cases:
        if case.title not in rows:
            continue
        share = success(rows[case.title])
        if share > FAILS:
            out[case.title] = "recovered" if share >= SUCCEEDS else "recovered in part"
            continue
        needed = ["full gradient", "head kept", *([f"oracle {case.variant}"] if case.variant != "plain" else [])]
        missing = [role for role in needed if role not in roles]
        if missing:
            raise UserError(f"row {case.title!r} fails and cannot be reported alone: it needs the control {', '.join(map(repr, missing))}.")
        weak = [role for role in needed if role != "head kept" and success(roles[role]) < SUCCEEDS]
        out[case.title] = f"inconclusive: the control {weak[0]!r} does not succeed" if weak else f"below {SUCCESS:g} dB"
    return out


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """25, 50, 75 %; a NaN counts as 0 dB."""
    low, middle, high = np.percentile(np.nan_to_num(np.array(values), nan=0.0), (25, 50, 75))
    return float(low), float(middle), float(high)


def summary(attempts: Sequence[Attempt], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One line for each row: never the best of many, all attempts count."""
    words = verdicts(attempts, cases)
    out = []
    for title, group in rows_of(attempts).items():
        low, middle, high = quartiles([a.psnr for a in group])
        errors = [a.embedding_error for a in group if a.embedding_error is not None]
        maps = [a.feature_correlation for a in group if a.feature_correlation is not None]
        rights = [a.label_right for a in group if a.label_right is not None]
        out.append(
            {
                "dataset": group[0].dataset,
                "row": title,
                "attempts": len(group),
                "psnr_q1": low,
                "psnr_median": middle,
                "psnr_q3": high,
                "ssim_median": quartiles([a.ssim for a in group])[1],
                "success": success(group),
                "label_right": float(np.mean(rights)) if rights else None,
                "embedding_error_median": float(np.median(errors)) if errors else None,
                "feature_correlation_median": float(np.median(maps)) if maps else None,
                "nan": sum(a.failed for a in group),
                "evals_median": float(np.median([a.evals for a in group])),
                "cpu_seconds": sum(a.cpu_seconds for a in group),
                "verdict": words[title],
            }
        )
    return out


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """The summary as a table."""
    names = ("data", "row", "n", "PSNR q1 / median / q3", "SSIM", f">= {SUCCESS:g} dB", "v off by", "maps r", "verdict")
    head = f"| {' | '.join(names)} |\n|---|---|{'---:|' * 6}---|\n"

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    body = [
        f"| {s['dataset']} | {s['row']} | {s['attempts']} | {s['psnr_q1']:.1f} / **{s['psnr_median']:.1f}** / {s['psnr_q3']:.1f} "
        f"| {s['ssim_median']:.2f} | {100 * s['success']:.0f} % "
        f"| {shown(s['embedding_error_median'], '.1%')} | {shown(s.get('feature_correlation_median'), '.2f')} | {s['verdict']} |\n"
        for s in lines
    ]
    return head + "".join(body)


def write_csv(path: Path, attempts: Sequence[Attempt]) -> None:
    """Every attempt."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Attempt._fields)
    writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in a] for a in attempts)
    write_text(path, text.getvalue())
