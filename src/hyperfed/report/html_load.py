"""Runs for a report: what was given on the command line is found, read and checked; what is damaged is left out and named."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, get_type_hints

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hyperfed.core import UserError
from hyperfed.report.runs import Detail, RunFiles, read_run
from hyperfed.report.similarity import group_of_clients

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Summary(TypedDict):
    """Accuracy of all clients, see ``Evaluation.summary``."""

    weighted: Share
    mean: Share
    p10: Share


class Spent(TypedDict):
    """A guarantee of differential privacy."""

    epsilon: Finite | None
    delta: Finite
    unit: str


class Evaluated(TypedDict):
    """What a report needs of one evaluation."""

    round: Count
    before: Summary
    after: Summary | None
    trainable: Count
    bytes: Count
    cpu_seconds: Finite
    privacy: NotRequired[Spent | None]


class Named(TypedDict):
    """A choice from a registry, with its settings."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    name: str


class Local(TypedDict):
    """Of the clients' training."""

    epochs: int


class Data(TypedDict):
    """Of the data."""

    fraction: float


class Settings(TypedDict):
    """What a report needs of the configuration."""

    seed: int
    rounds: Positive
    num_clients: Positive
    participation: float
    method: Named
    model: Named
    dataset: Named
    partition: Named
    local: Local
    data: Data
    run: dict[str, Any]


class Versions(TypedDict):
    """Of the run's software, and the revision of its method."""

    hyperfed: str
    method: NotRequired[int | str]


class Facts(TypedDict):
    """What a report needs of ``run.json``."""

    identity: str
    versions: Versions


FAILED = ".failed.json"  # beside kept runs: what a run died of


def found(paths: Sequence[str | Path]) -> Iterator[Path]:
    """Every run named, and those within a folder that is not a run itself, failed ones aside. A path that does not exist is refused.

    A folder without runs is, too, where nothing else is named; among others (``runs/*``) it comes as what cannot be read.
    """
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"run {str(path)!r} does not exist: give run folders, kept runs (.json), or folders of them.")
        if path.is_file() or (path / "config.json").exists():
            yield path
            continue
        kept = (p for p in path.iterdir() if p.suffix == ".json" and not p.name.endswith(FAILED))
        inside = sorted([*kept, *(p for p in path.iterdir() if (p / "config.json").exists())])
        if not inside and len(paths) == 1:
            raise UserError(f"{str(path)!r} holds no run: neither a config.json of its own nor runs within.")
        yield from inside or [path]


def _valid(kind: Any, value: Any, where: str) -> None:
    """Without any conversion: a number that is text would be added up as text."""
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as problem:
        first = problem.errors()[0]
        raise ValueError(f"{'.'.join(map(str, (where, *first['loc'])))}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def check(run: RunFiles) -> None:
    """Raises ``ValueError``, which says where and why, if a file was read but does not hold a run's numbers."""
    _valid(Settings, run.config, "config")
    _valid(Facts, run.facts, "facts")
    _valid(tuple[Count, Count, Count, Count], tuple(run.per_round), "per_round")
    _valid(Annotated[list[Evaluated], Field(min_length=1)], run.evaluations, "evaluations")
    for name, kind in get_type_hints(Detail).items():
        _valid(kind, getattr(run.detail, name), f"detail.{name}")
    group_of_clients(run.config)
    clients, detail = run.config["num_clients"], run.detail
    if any(len(row) != 3 for row in detail.totals):
        raise ValueError("detail.totals: a row is not (round, elements, bytes)")
    if detail.clients and "tests" not in detail.clients:
        raise ValueError("detail.clients: tests is missing")
    shapes: dict[str, Any] = {**detail.clients, "label_counts": detail.label_counts, "similarity": detail.similarity}
    for name, value in shapes.items():
        if len(value) and len(value) != clients:
            raise ValueError(f"{name} has {len(value)} rows for {clients} clients")
    for kind in set(detail.clients) - {"tests"}:
        if any(not 0 <= right <= n for right, n in zip(detail.clients[kind], detail.clients["tests"], strict=True)):
            raise ValueError(f"a client has more right answers ({kind}) than test samples, or less than none")
    classes = len(detail.class_names) or len((detail.label_counts or [[]])[0])
    if any(len(row) != classes for row in detail.label_counts):
        raise ValueError(f"label_counts: a row has not {classes} classes")
    if any(len(row) != clients for row in detail.similarity) or not np.isfinite(np.array(detail.similarity)).all():
        raise ValueError("similarity is no square of finite numbers")


def reason(problem: Exception) -> str:
    """What is wrong with a file, as the end of a sentence, without its full stop."""
    match problem:
        case json.JSONDecodeError():
            return f"no valid JSON ({problem.msg[0].lower()}{problem.msg[1:]}, line {problem.lineno}, column {problem.colno})"
        case UnicodeDecodeError():
            return "no text in UTF-8"
        case FileNotFoundError():
            return f"{Path(problem.filename).name} is missing"
        case OSError():
            return str(problem.strerror)
        case KeyError():
            return f"{problem.args[0]} is missing"
    return str(problem).rstrip(".")


def played_as(run: RunFiles) -> str:
    """What tells a run from others: its settings, its versions and its numbers, without seconds."""
    numbers = [{k: v for k, v in e.items() if k not in ("seconds", "cpu_seconds")} for e in run.evaluations]
    return json.dumps([run.label, run.facts["identity"], run.facts["versions"], numbers], sort_keys=True)


def load(paths: Sequence[str | Path]) -> tuple[list[RunFiles], list[str]]:
    """The runs that could be read, and one sentence for each that could not or is another's copy. At least one must be good."""
    runs, damaged, known = list[RunFiles](), list[str](), dict[str, RunFiles]()
    for path in found(paths):
        try:
            run = read_run(path)
        except UserError as problem:
            damaged.append(str(problem))
            continue
        first = known.setdefault(played_as(run), run)
        if first is run:
            runs.append(run)
        else:
            damaged.append(f"{run.folder} is {first.folder} played again, with the same numbers.")
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
