"""The ServerApp and the ClientApp that Flower loads: their configuration is Flower's run config, whose keys are Hydra's."""

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hyperfed.core import UserError
from hyperfed.engine.flower.client_app import ClientSide, make_client_app
from hyperfed.main import check_overrides, compose_checked, composed_dict
from hyperfed.report.live import describe
from hyperfed.run.claim import InUse
from hyperfed.run.config import run_folder
from hyperfed.run.experiment import Experiment
from hyperfed.run.flower import deployed_side, side_of

FAILURE = "failure.txt"
"""In the run's folder: why the last ServerApp ended. Flower's own exit status is 0 either way."""


def overrides_of(run_config: Mapping[str, Any]) -> list[str]:
    """Flower's flat keys as Hydra's overrides; ``overrides`` holds any others, as on the command line. An empty value is the default.

    ``run.dir`` is not among them: a path may hold what Hydra's grammar takes for its own.
    """
    first = [f"{key}={_text(value)}" for key, value in run_config.items() if key not in ("overrides", "run.dir") and value != ""]
    if not any(o.startswith("engine=") for o in first):
        first.insert(0, "engine=flower")
    text = str(run_config.get("overrides", ""))
    try:
        return [*first, *shlex.split(text)]
    except ValueError as problem:
        raise UserError(f"overrides = {text!r} is not valid: must be settings as on a command line ({problem}).") from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    check_overrides(overrides)
    composed = composed_dict(compose_checked(list(overrides)))
    if composed["engine"]["name"] != "flower":
        raise UserError(f"engine = {composed['engine']['name']!r} is not valid: must be flower, which started this process.")
    return composed


def compose_run(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a run that Flower started."""
    composed = _composed(tuple(overrides_of(run_config)))
    run = dict(composed["run"])
    run["dir"] = run_config.get("run.dir") or run["dir"]
    if not Path(run["dir"] or run["root"]).is_absolute():  # Flower unpacks apps to a folder of its own and runs them there
        if run["dir"]:
            raise UserError(f"run.dir = {run['dir']!r} is not valid: must be an absolute path.")
        run["root"] = str(Path.home() / "hyperfed-runs")
    return {**composed, "run": run}


def _say(line: dict[str, Any]) -> None:
    if "before" in line:
        text = f"round {line['round']}: {describe(line)}"
    elif line.get("event") == "skipped":
        text = f"round {line['round']}: {line['message']}"
    else:
        text = f"round {line['round']} is complete."
    print(text, flush=True)  # noqa: T201 - Flower's log is what a process prints


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Play the run; a folder that holds a part of it is gone on with."""
    composed = compose_run(context.run_config)
    folder = run_folder(composed)
    print(f"run folder: {folder}", flush=True)  # noqa: T201
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        experiment = Experiment(composed, _say, grid)
        experiment.run()
    except InUse:
        raise
    except BaseException as problem:
        folder.mkdir(parents=True, exist_ok=True)
        kind = "" if isinstance(problem, UserError) else f"{type(problem).__name__}: "
        (folder / FAILURE).write_text(f"{kind}{problem}\n", encoding="utf-8")
        raise


def side_from(context: Context) -> ClientSide:
    """What this node needs: with a ``state-dir`` it is a deployed one, else one of the simulator's."""
    composed = compose_run(context.run_config)
    if "state-dir" in context.node_config:
        return deployed_side(composed, context)
    return side_of(composed, str(run_folder(composed) / "states"), context)


client_app = make_client_app(side_from)
