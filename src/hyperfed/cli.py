"""``hyperfed``: run, compare, report, export, list, quickstart."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hyperfed.report.runs import RunFiles

EXAMPLES = """examples:
  hyperfed quickstart                                    HFN, FedAvg, FedPer and Local on digits, side by side
  hyperfed run method=hfn dataset=mnist partition=dirichlet partition.alpha=0.5
  hyperfed compare runs/*                                one table, two plots
  hyperfed report runs -o report.html                    all there is to see of them, as one page
"""
QUICKSTART = ("hfn", "fedavg", "fedper", "local")


def _runs(folders: Sequence[str]) -> "list[RunFiles]":
    """The runs in ``folders``; those that hold none are passed over with a note, as long as there are others."""
    from hyperfed.report.runs import read_run

    others = [f for f in folders if Path(f).is_dir() and not (Path(f) / "config.json").exists()]
    if len(others) == len(folders):
        return [read_run(f) for f in folders]
    for folder in others:
        print(f"hyperfed: passed over: {folder!r} is not a run's folder: it has no config.json.", file=sys.stderr)
    return [read_run(f) for f in folders if f not in others]


def _compare(folders: Sequence[str], out: Path) -> None:
    from rich.console import Console

    from hyperfed.core.files import write_text
    from hyperfed.evidence.store import same_version
    from hyperfed.report.comparison import told_apart
    from hyperfed.report.plots import plot_accuracy
    from hyperfed.report.tables import markdown_table, terminal_table
    from hyperfed.run.config import writable

    runs = told_apart(_runs(folders))
    same_version(runs)
    writable("--out", out)
    console = Console()
    console.print(terminal_table(runs))
    paths = [plot_accuracy(runs, out / f"accuracy_over_{over}s.png".replace("bytess", "bytes"), over) for over in ("round", "bytes")]
    write_text(out / "comparison.md", markdown_table(runs))
    print("plots and table:", *paths, out / "comparison.md")


def _keep(folders: Sequence[str], out: Path) -> None:
    from hyperfed.report.runs import keep
    from hyperfed.run.config import writable

    writable("--out", out)
    print("kept:", *(keep(run, out) for run in _runs(folders)))


def _report(known: argparse.Namespace) -> None:
    from hyperfed.report.html_report import report

    written, damaged = report(known.runs, known.out, title=known.title, figures=known.figures, tables=known.tables)
    for sentence in damaged:
        print(f"hyperfed: left out: {sentence}", file=sys.stderr)
    print("written:", *written)


def _list() -> None:
    from rich.console import Console

    from hyperfed.data import DATASETS, PARTITIONS
    from hyperfed.defences import DEFENCES
    from hyperfed.methods import METHODS
    from hyperfed.models import MODELS

    console = Console(highlight=False, soft_wrap=True)
    sections = {
        "methods (method=)": {"hfn": "HyperFedNet: FedAvg over a hypernetwork (method=fedavg hyper=hfn)."}
        | {n: _first_line(c) for n, c in METHODS.items()},
        "hypernetworks (hyper=)": {
            "none": "The network's own weights are trained.",
            "hfn": "HFN: 3x3 kernels are generated, only the hypernetwork travels.",
            "hfn_head": "HFN whose clients keep head and embeddings alone; the head alone is fine-tuned.",
        },
        "models (model=)": {n: _first_line(b) for n, b in MODELS.items()},
        "data sets (dataset=)": {n: s.description for n, s in DATASETS.items()},
        "partitions (partition=)": {n: _first_line(c) for n, c in PARTITIONS.items()},
        "defences (privacy=)": {n: _first_line(c) for n, c in DEFENCES.items()},
    }
    for title, rows in sections.items():
        console.print(f"[bold]{title}[/bold]")
        for name, text in rows.items():
            console.print(f"  {name:<15}{text}")


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _quickstart(overrides: Sequence[str]) -> None:
    from hyperfed.main import check_overrides, compose_checked, composed_dict, run_composed
    from hyperfed.run.config import run_folder

    folders = []
    for method in QUICKSTART:
        arguments = [f"method={method}", "experiment=quick_digits", *overrides]
        check_overrides(arguments)
        composed = composed_dict(compose_checked(arguments))
        run_composed(composed)
        folders.append(str(run_folder(composed)))
    _compare(folders, Path(folders[0]).parent / "comparison")


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code (0 done, 2 a user's mistake, 3 training diverged, 130 interrupted)."""
    from hyperfed.arguments import parse
    from hyperfed.main import guarded
    from hyperfed.main import main as run_main

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        "hyperfed",
        description="Personalised federated learning with hypernetworks.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run an experiment (Hydra settings; 'hyperfed run --help')", add_help=False)
    compare = commands.add_parser("compare", help="compare runs: a table, accuracy over rounds and over bytes")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    compare.add_argument("-o", "--out", type=Path, default=Path("comparison"), help="where the plots go (default: ./comparison)")
    keep = commands.add_parser("keep", help="write runs as small JSON files, to be committed; 'compare' reads them, too")
    keep.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    keep.add_argument("-o", "--out", type=Path, default=Path("results"), help="where they go (default: ./results)")
    page = commands.add_parser("report", help="one HTML page of runs, with charts; opens offline")
    page.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, a kept run (.json), or a folder of them")
    page.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page (default: ./report.html)")
    page.add_argument("--title", default="HyperFed report", help="its heading")
    page.add_argument("--figures", type=Path, metavar="DIR", help="write the plots as PNG and SVG there, too")
    page.add_argument("--tables", type=Path, metavar="DIR", help="write the comparison as Markdown, CSV and LaTeX there, too")
    commands.add_parser("list", help="methods, models, data sets, partitions")
    quick = commands.add_parser("quickstart", help="HFN, FedAvg, FedPer and Local on digits")
    quick.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="settings as for 'hyperfed run'")
    commands.add_parser("reproduce", help="a table or figure of the HyperFedNet paper, ours beside theirs", add_help=False)
    commands.add_parser("export", help="clients' personal models out of a finished run, as files of their own", add_help=False)
    commands.add_parser("deploy", help="a real federation with TLS: certs, server, client (docs/deploy.md)", add_help=False)
    commands.add_parser("attack", help="what a curious server recovers from messages (docs/privacy.md)", add_help=False)
    if arguments[:1] == ["attack"]:
        from hyperfed.privacy.command import main as attack_main

        return guarded(lambda: attack_main(arguments[1:]))
    if arguments[:1] == ["run"]:
        return run_main(arguments[1:])
    if arguments[:1] == ["deploy"]:
        from hyperfed.deploy import main as deploy_main

        return guarded(lambda: deploy_main(arguments[1:]))
    if arguments[:1] == ["export"]:
        from hyperfed.export import main as export_main

        return guarded(lambda: export_main(arguments[1:]))
    if arguments[:1] == ["reproduce"]:
        from hyperfed.evidence.command import main as reproduce_main

        return guarded(lambda: reproduce_main(arguments[1:]))
    known = parse(parser, arguments, "settings" if arguments[:1] == ["quickstart"] else "runs")
    if known.command == "quickstart":
        return guarded(lambda: _quickstart(known.settings))
    if known.command == "compare":
        return guarded(lambda: _compare(known.runs, known.out))
    if known.command == "keep":
        return guarded(lambda: _keep(known.runs, known.out))
    if known.command == "report":
        return guarded(lambda: _report(known))
    return guarded(_list)


if __name__ == "__main__":
    sys.exit(main())
