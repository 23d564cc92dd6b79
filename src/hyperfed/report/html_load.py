"""Runs for a report: what was given on the command line is found, read and checked; what is damaged is left out and named."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hyperfed.core import UserError
from hyperfed.report.runs import Detail, RunFiles, read_run
from hyperfed.report.similarity import group_of_clients
from hyperfed.report.tables import describe_setting

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


FAILED = ".failed.json"  # beside kept runs: what a run died of


class Summary(TypedDict):
    """Accuracy of all clients, see ``Evaluation.summary``."""

    mean: Share
    p10: Share


class Evaluated(TypedDict):
    """What a report needs of one evaluation."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    round: Count
    before: Summary
    after: Summary | None
    bytes: Count
    cpu_seconds: Annotated[float, Field(ge=0)]


def found(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Every run named, and those within a folder that is not a run itself, failed ones aside. A path that does not exist is refused."""
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"run {str(path)!r} does not exist: give run folders, kept runs (.json), or folders of them.")
        if path.is_file() or (path / "config.json").exists():
            yield path
            continue
        kept = (p for p in path.iterdir() if p.suffix == ".json" and not p.name.endswith(FAILED))
        inside = sorted([*kept, *(p for p in path.iterdir() if (p / "config.json").exists())])
        if not inside:
            raise UserError(f"{str(path)!r} holds no run: neither a config.json of its own nor runs within.")
        yield from inside


def check(run: RunFiles) -> None:
    """Raises ``ValueError`` or ``KeyError`` where a file was read but does not hold a run's numbers."""
    TypeAdapter(Annotated[list[Evaluated], Field(min_length=1)]).validate_python(run.evaluations)
    TypeAdapter(Detail).validate_python(asdict(run.detail))
    describe_setting(run)
    group_of_clients(run.config)
    clients, detail = run.config["num_clients"], run.detail
    shapes: dict[str, Any] = {**detail.clients, "label_counts": detail.label_counts, "similarity": detail.similarity}
    for name, value in shapes.items():
        if len(value) and len(np.array(value, dtype=float)) != clients:
            raise ValueError(f"{name} has {len(value)} rows for {clients} clients")
    for kind in set(detail.clients) - {"tests"}:
        if any(not 0 <= right <= n for right, n in zip(detail.clients[kind], detail.clients["tests"], strict=True)):
            raise ValueError(f"a client has more right answers ({kind}) than test samples")
    if detail.similarity and (np.shape(detail.similarity) != (clients, clients) or not np.isfinite(detail.similarity).all()):
        raise ValueError("similarity is no square of finite numbers")


def load(paths: Sequence[str | Path]) -> tuple[list[RunFiles], list[str]]:
    """The runs that could be read, and one sentence for each that could not. At least one must be good."""
    runs, damaged = [], []
    for path in found(paths):
        try:
            run = read_run(path)
            check(run)
            runs.append(run)
        except ValidationError as problem:
            first = problem.errors()[0]
            damaged.append(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}.")
        except UserError as problem:
            damaged.append(str(problem))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
            damaged.append(f"{path.name}: {type(problem).__name__} {problem}.")
    if not runs:
        raise UserError(f"none of the {len(damaged)} runs could be read; the first: {damaged[0]}")
    return runs, damaged


def without_trials(runs: Sequence[RunFiles]) -> tuple[list[RunFiles], str]:
    """The runs measured on test data, and a sentence on those that are not; where there are no others, these are all there is to show."""
    results = [run for run in runs if run.config["data"].get("validation") is None]
    trials = len(runs) - len(results)
    if not trials:
        return results, ""
    what = f"{trials} trial{'s' * (trials > 1)} (data.validation is set: accuracy on a part of the training data, not on test data)"
    if not results:
        return list(runs), f"No results: all there is are {what}."
    return results, f"Left out: {what}; give {'them' if trials > 1 else 'it'} alone to see {'them' if trials > 1 else 'it'}."
