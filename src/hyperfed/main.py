"""The command that runs experiments: ``python -m hyperfed.main method=hfn dataset=mnist``, the same as ``hyperfed run ...``."""

import os
import sys
from collections.abc import Callable, Sequence
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from importlib.resources import files
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hyperfed.core import UserError, invalid, unknown
from hyperfed.core.files import read_json
from hyperfed.run.config import FREE, flat, make_config

NEEDED = ("method", "model", "dataset", "partition", "engine", "num_clients", "seed", "rounds", "run")
"""What the configuration of every run has."""
OPTIONAL = ("scale", "experiment")
"""Groups of which nothing need be chosen."""
EXIT_USER, EXIT_DIVERGED, EXIT_INTERRUPTED = 2, 3, 130
FULL = (ENOSPC, EDQUOT, EFBIG, EROFS)
"""What a system says where nothing more can be written."""


def guarded(action: Callable[[], int | None]) -> int:
    """Run a command; a user's mistake is one sentence on standard error and exit code 2 (3: training went to NaN)."""
    from hyperfed.run.experiment import Diverged, Interrupted

    try:
        return action() or 0
    except UserError as problem:
        print(f"hyperfed: {problem}", file=sys.stderr)
        return EXIT_DIVERGED if isinstance(problem, Diverged) else EXIT_USER
    except Interrupted as stop:
        print(f"hyperfed: {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("hyperfed: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # who read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        print(f"hyperfed: a file could not be written: {problem.strerror}; make room, and give the command again.", file=sys.stderr)
        return EXIT_USER


def groups() -> dict[str, list[str]]:
    """Config group -> its options."""
    conf = files("hyperfed.conf")
    return {
        d.name: sorted(f.name[:-5] for f in d.iterdir() if f.name.endswith(".yaml"))
        for d in conf.iterdir()
        if d.is_dir() and d.name[0] != "_"
    }


def check_overrides(overrides: Sequence[str], multirun: bool = False) -> None:
    """Say in one sentence what is wrong with the command line, before Hydra says it in ten. ``multirun``: values may be lists of values."""
    options = groups()
    parsed = _parsed(overrides)
    for override in parsed:
        key = override.key_or_group
        if override.is_delete():
            raise UserError(f"{override.input_line} is not valid: a setting can be changed, {key}=VALUE, but not taken out.")
        for choice in _values(override):
            if key in options and isinstance(choice, str) and choice not in options[key]:
                raise unknown(key, choice, options[key])
            if key in options and not isinstance(choice, str | list):
                raise invalid(key, choice, f"one of {', '.join(options[key])}{', or left out' if key in OPTIONAL else ''}")
            if key == "resume" and not isinstance(choice, str | None):
                raise invalid(key, choice, "a run's folder, in two pairs of quotes where it could be something else than a word")
        if override.is_sweep_override() and not multirun:
            raise UserError(f"{override.input_line} stands for several runs: add --multirun to 'hyperfed run'.")
    for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]:
        make_config(composed_dict(compose_checked(list(job))))


def _values(override: Override) -> list[Any]:
    try:
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException as problem:
        raise UserError(f"{override.input_line} is not valid: {str(problem).splitlines()[0]}.") from None


def _parsed(overrides: Sequence[str]) -> list[Override]:
    """Hydra's reading of the command line. It needs the groups' options for ``dataset=glob(*)``."""
    GlobalHydra.instance().clear()
    with initialize_config_module("hyperfed.conf", version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    for text in overrides:
        try:
            parser.parse_override(text)
        except HydraException as problem:
            why = str(problem).splitlines()[0]
            if why.startswith(("Lexer", "token recognition")):
                why = "quote a value with special characters twice, as in 'run.name=\"a;b\"', and write $HOME in place of ~"
            raise UserError(f"the command line could not be read at {text!r}: {why}.") from None
    return parser.parse_overrides(list(overrides))


def compose_checked(overrides: list[str]) -> DictConfig:
    """Compose the configuration; Hydra's complaints become one sentence."""
    GlobalHydra.instance().clear()
    with initialize_config_module("hyperfed.conf", version_base="1.3"):
        try:
            return compose("config", overrides=overrides)
        except (HydraException, OmegaConfBaseException) as problem:
            raise _explain(problem, overrides) from None


def _explain(problem: Exception, overrides: list[str]) -> UserError:
    """Name the override that does not exist, with the nearest that does."""
    default = composed_dict(compose("config"))
    try:
        chosen = composed_dict(compose("config", overrides=[o for o in overrides if o.partition("=")[0] in (*groups(), "hyper")]))
    except (HydraException, OmegaConfBaseException):
        chosen = default
    here = sorted(k for k in flat(chosen) if not k.startswith("dataset.paper."))
    known = sorted({*flat(default), *groups()})
    parents = {k.rpartition(".")[0] for k in known}
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if (
            key not in known
            and key not in parents
            and not key.startswith(("hydra.", "method.", "model.", "partition.", "hypernet.", "privacy."))
        ):
            group, _, last = key.rpartition(".")
            if same := [k for k in here if k.rpartition(".")[2] == last]:  # in another group
                return UserError(f"field {key!r} unknown; did you mean {same[0]!r}?")
            within = [k for k in here if k.startswith(f"{group}.") and k.count(".") == key.count(".")] if group else []
            return unknown("field", key, within or [*here, *groups()])
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if key.startswith(("method.", "model.", "partition.", "hypernet.", "privacy.")):
            present = [k for k in here if k.startswith(key.split(".")[0] + ".")]
            if key not in present:
                return unknown("field", key, present) if present else _not_yet(key)
    return UserError(str(problem).splitlines()[0])


def _not_yet(key: str) -> UserError:
    """A setting of an optional group of which nothing is chosen: name the choices that have it."""
    choices = ["method=hfn", "hyper=hfn"] if key.startswith("hypernet.") else [f"privacy={name}" for name in groups()["privacy"]]
    offers = {choice: flat(composed_dict(compose("config", overrides=[choice]))) for choice in choices}
    having = [choice for choice, offered in offers.items() if key in offered]
    if not having:
        return unknown("field", key, {k for offered in offers.values() for k in offered if k.startswith(key.split(".")[0] + ".")})
    return UserError(f"field {key!r} exists only with {' or '.join(having)}.")


def composed_dict(cfg: DictConfig) -> dict[str, Any]:
    """The plain dictionary below Hydra's door."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    container.pop("resume", None)
    return {str(k): v for k, v in container.items()}


def resumed(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The saved configuration of ``folder``. What the command line sets besides must agree with it, or be free to differ."""
    path = folder / "config.json"
    if not os.access(path, os.F_OK):  # False, too, for what is too long to be a path
        raise UserError(f"resume = {str(folder)!r} is not a run's folder: it has no config.json.")
    saved = read_json(path, *NEEDED)
    try:
        make_config(saved)
    except UserError as problem:
        raise UserError(f"{path} cannot be used: {problem}") from None
    set_here = set[str]().union(*map(_sets, overrides)) - {"resume"}
    same = [] if "dataset" in set_here else [f"dataset={saved['dataset']['name']}"]  # some settings follow from it
    now = composed_dict(compose_checked([*same, *overrides]))
    was, would = flat(saved), flat(now)
    was["run.dir"] = str(folder)
    if Path(would.get("run.dir") or folder).absolute() == folder.absolute():
        would["run.dir"] = str(folder)
    for key in sorted({*was, *would}):
        if not any(key == s or key.startswith(s + ".") for s in set_here):
            continue
        if was.get(key) == would.get(key):
            continue
        if key == "run.dir" or not any(key == f or key.startswith(f + ".") for f in FREE):
            raise UserError(
                f"resume: {key} = {would.get(key)!r} differs from the run's {was.get(key)!r}; leave it out, or start a new run."
            )
        _set(saved, key, would[key])
    saved["run"]["dir"] = str(folder)
    return saved


def _sets(override: str) -> set[str]:
    """The settings, or groups of them, that a word of the command line sets: the choice of an option may set others' than its group's."""
    key, _, choice = override.lstrip("+~").partition("=")
    option = files("hyperfed.conf") / key / f"{choice}.yaml"
    if key not in groups() or not option.is_file():
        return {key}
    text = option.read_text(encoding="utf-8")
    if "@package _global_" not in text:
        return {key, "hypernet"} if key == "method" else {key}  # method=fedavg is not method=hfn
    values = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(values, dict)
    chosen = [f"{k.removeprefix('override /')}={v}" for each in values.pop("defaults", []) for k, v in each.items()]
    return set(flat({str(k): v for k, v in values.items()})).union(*map(_sets, chosen))


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        tree = tree[part]
    tree[last] = value


def run_composed(composed: dict[str, Any]) -> None:
    """Run one experiment with live progress."""
    from hyperfed.report.live import follow
    from hyperfed.run.experiment import Experiment

    follow(lambda listen: Experiment(composed, listen))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code, of several runs the worst."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    overrides = [a for a in arguments if not a.startswith("-")]
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in {*groups(), *flat(composed_dict(compose_checked([])))}:
            raise UserError(f"{word!r} is not an option: settings are written without dashes, {name}=VALUE.")
    if not any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        check_overrides(overrides, multirun="-m" in arguments or "--multirun" in arguments)
    GlobalHydra.instance().clear()
    flags = [a for a in arguments if a in ("-m", "--multirun")]  # argparse wants them before the first override
    sys.argv = ["hyperfed run", *flags, *(a for a in arguments if a not in flags)]
    codes: list[tuple[str, int]] = []

    @hydra.main(version_base="1.3", config_path="pkg://hyperfed.conf", config_name="config")
    def job(cfg: DictConfig) -> None:
        task = list(HydraConfig.get().overrides.task)
        codes.append((" ".join(o for o in task if o not in overrides), guarded(lambda: _run(cfg, task))))
        if codes[-1][1] == EXIT_INTERRUPTED:
            sys.exit(EXIT_INTERRUPTED)  # the others, too

    try:
        job()
    finally:
        failed = [f"{what} (exit code {code})" for what, code in codes if code]
        if flags and failed:
            print(f"hyperfed: {len(failed)} of {len(codes)} runs did not end well: {'; '.join(failed)}.", file=sys.stderr)
    return max((code for _, code in codes), default=0)


def _run(cfg: DictConfig, overrides: list[str]) -> None:
    """Compose and play one run."""
    run_composed(composed_dict(cfg) if cfg.resume is None else resumed(Path(cfg.resume), overrides))


if __name__ == "__main__":
    sys.exit(main())
