"""``hyperfed attack``: the privacy experiments."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hyperfed.arguments import parse
from hyperfed.core import UserError, invalid, unknown
from hyperfed.core.files import write_json, write_text
from hyperfed.data import DATASETS, Dataset, load_dataset
from hyperfed.privacy.figure import Picture, draw_grid
from hyperfed.privacy.lab import CASES, Attempt, Case, Setting, baseline, choose, play
from hyperfed.privacy.metrics import SUCCESS
from hyperfed.privacy.networks import INITS
from hyperfed.privacy.resnet import CASES as RESNET_CASES
from hyperfed.privacy.resnet import ROUNDS, hull_of_a_round, hull_table, resnets, settings_of
from hyperfed.privacy.search import Budget
from hyperfed.privacy.summary import markdown, summary, write_csv
from hyperfed.privacy.sweep import sweep, sweep_table
from hyperfed.run.config import writable

PAPER = ("mnist", "fashion_mnist", "cifar10", "cifar100")
COLUMNS = 8
EXAMPLES = """examples:
  hyperfed attack fig4 -o leak                                      two images of each of the paper's four data sets
  hyperfed attack fig4 scale=paper dataset=mnist,cifar10 -o leak    16 images, three seeds
  hyperfed attack fig4 scale=smoke dataset=digits -o leak           half a minute, no download
"""


@dataclass(frozen=True)
class Scale:
    """How many images and seeds, and what one attack may spend on grey images (colour: half as much again)."""

    images: int
    seeds: int
    evals: int
    restarts: int


SCALES = {"smoke": Scale(1, 1, 300, 2), "mini": Scale(2, 1, 600, 2), "paper": Scale(16, 3, 2000, 4)}
SETTINGS = {
    "scale": "mini",
    "dataset": ",".join(PAPER),
    "images": "",
    "seeds": "",
    "evals": "",
    "init": "dlg",
    "data.root": "",
    "data.cache": "",
}


def settings(words: Sequence[str]) -> dict[str, str]:
    """``key=value`` words over the defaults."""
    out = dict(SETTINGS)
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"argument {word!r} is not valid: must be key=value with a key of {', '.join(SETTINGS)}.")
        if key not in SETTINGS:
            raise unknown("setting", key, SETTINGS)
        out[key] = value
    return out


def number(chosen: dict[str, str], key: str, default: int) -> int:
    """A positive integer, or the scale's."""
    text = chosen[key]
    if text and not (text.isascii() and text.isdecimal() and int(text[:20]) > 0):
        raise invalid(key, text, "an integer >= 1")
    return int(text or default)


def refuse(words: Sequence[str], experiment: str, unused: Sequence[str]) -> None:
    """A setting that would change nothing is a mistake."""
    for key in unused:
        if any(word.startswith(f"{key}=") for word in words):
            raise UserError(f"setting {key!r} has no meaning for 'hyperfed attack {experiment}': leave it out.")


def prepared(words: Sequence[str]) -> Iterator[tuple[Dataset, Scale, Setting]]:
    """Each data set with its scale and what all its attacks share."""
    chosen = settings(words)
    if chosen["scale"] not in SCALES:
        raise unknown("scale", chosen["scale"], SCALES)
    if chosen["init"] not in INITS:
        raise unknown("init", chosen["init"], INITS)
    names = chosen["dataset"].split(",")
    for name in names:
        if name not in DATASETS:
            raise unknown("dataset", name, DATASETS)
    scale = SCALES[chosen["scale"]]
    scale = replace(scale, **{key: number(chosen, key, getattr(scale, key)) for key in ("images", "seeds", "evals")})
    torch.set_num_threads(1)
    for name in names:
        dataset = load_dataset(name, chosen["data.root"] or None, chosen["data.cache"] or None)
        colour = dataset.images.shape[3] > 1
        evals = scale.evals * 3 // 2 if colour else scale.evals
        budget = Budget(evals, 100 if colour else 50, scale.restarts, start="grey", enough=1e-9)
        yield dataset, scale, Setting(budget, start=chosen["init"])


def fig4(words: Sequence[str], out: Path) -> None:
    """Attack every method's message for every image; write the picture, every attempt and the summary of each data set."""
    for dataset, scale, setting in prepared(words):
        one_dataset(dataset, scale, setting, out, Figure(CASES, "", "one image, one step, LeNet"))
    tell(out, "", "fig4")


def residual(words: Sequence[str], out: Path) -> None:
    """Inverting Gradients against the paper's residual network; files as of fig4."""
    refuse(words, "resnet", ("init",))
    for dataset, scale, setting in prepared(["dataset=mnist,cifar10", *words]):
        budget = replace(setting.budget, evals=4 * setting.budget.evals, restarts=1, smooth=0.1)
        embedding = settings_of(dataset.name)["embedding"]
        networks = resnets(dataset.name)
        setting = replace(setting, budget=budget, networks=networks, embedding=embedding, batch=2, single=True)
        scale = replace(scale, images=max(2, scale.images))
        text = "two images in a message, one step, ResNet of Table 1"
        one_dataset(dataset, scale, setting, out, Figure(RESNET_CASES, "resnet_", text, "as in training"))
    tell(out, "resnet_", "resnet")


def tell(out: Path, prefix: str, name: str) -> None:
    """The table, told before it is written."""
    print(table(out, prefix), flush=True)
    write_table(out, prefix, name)
    print(f"written: {out}")


def write_table(out: Path, prefix: str, name: str) -> str:
    """Write :func:`table`."""
    text = table(out, prefix)
    write_text(out / f"{name}.md", text)
    return text


def table(out: Path, prefix: str) -> str:
    """One table of all data sets whose results are in ``out``."""
    found = [path for d in DATASETS if (path := out / f"{prefix}{d}.json").exists()]
    return markdown([row for path in found for row in json.loads(path.read_text(encoding="utf-8"))["rows"]])


@dataclass(frozen=True)
class Figure:
    """Rows of a figure, how its files' names begin, what its title says of messages and network, and how that starts if not as DLG's."""

    cases: tuple[Case, ...]
    prefix: str
    text: str
    start: str = ""


def one_dataset(dataset: Dataset, scale: Scale, setting: Setting, out: Path, figure: Figure) -> None:
    """The files of one data set; the CSV grows with every message, so that an interrupted run has not been for nothing."""
    attempts: list[Attempt] = []
    pictures: dict[str, list[Picture]] = {case.title: [] for case in figure.cases}
    name = f"{figure.prefix}{dataset.name}"
    for attempt, image in play(dataset, scale.images, scale.seeds, setting, figure.cases):
        attempts.append(attempt)
        if attempt.seed == 0 and len(pictures[attempt.row]) < COLUMNS:
            pictures[attempt.row].append(Picture(image, attempt.psnr, attempt.ssim))
        if attempt.row == figure.cases[-1].title:
            write_csv(out / f"{name}.csv", attempts)
            print(f"{dataset.name}: seed {attempt.seed + 1} of {scale.seeds}, image {attempt.image} done", flush=True)
    lines = summary(attempts, figure.cases)
    write_json(
        out / f"{name}.json",
        {
            "scale": asdict(scale),
            "budget": asdict(setting.budget),
            "init": figure.start or setting.start,
            "embedding": setting.embedding,
            "psnr": f"on [0, 255], capped at 100 dB; success: >= {SUCCESS:g} dB",
            "without_any_message": baseline(dataset, scale.images),
            "rows": lines,
        },
    )
    originals = [torch.from_numpy(np.array(dataset.images[i])).permute(2, 0, 1) / 255 for i in choose(dataset, scale.images)[:COLUMNS]]
    rows = [("original", [Picture(o) for o in originals]), *pictures.items()]
    title = f"{dataset.name}: {figure.text}\nPSNR and SSIM; red: PSNR >= {SUCCESS:g} dB"
    draw_grid(out / f"{name}.png", rows, title)


def weaken(words: Sequence[str], out: Path) -> None:
    """Attack while one setting at a time is changed; write every attempt and the table."""
    for dataset, scale, setting in prepared(words):
        rows: list[dict[str, Any]] = []
        attempts: list[Attempt] = []
        for name, lines, found in sweep(dataset, scale.images, setting):
            rows, attempts = rows + found, attempts + [a._replace(row=f"{name}; {a.row}") for a in lines]
            write_csv(out / f"sweep_{dataset.name}.csv", attempts)
            write_json(out / f"sweep_{dataset.name}.json", {"budget": asdict(setting.budget), "rows": rows})
            print(f"{dataset.name}: {name} done", flush=True)
        print(sweep_table(rows), flush=True)
        write_text(out / f"sweep_{dataset.name}.md", sweep_table(rows))
        print(f"written: {out}")


def hulls(words: Sequence[str], out: Path) -> None:
    """How exactly a round over the paper's residual network shows the hull of the client's embeddings."""
    refuse(words, "hull", ("images", "seeds", "evals", "init"))
    for dataset, _, _ in prepared(["dataset=mnist", *words]):
        rows = [hull_of_a_round(dataset, images, epochs) for images, epochs in ROUNDS]
        print(hull_table(rows), flush=True)
        write_json(out / f"hull_{dataset.name}.json", rows)
        print(f"written: {out}")


EXPERIMENTS = {
    "fig4": (fig4, "images recovered from FedAvg's, FedPer's and HFN's messages"),
    "sweep": (weaken, "images and steps per message, size of phi, noise, one at a time"),
    "resnet": (residual, "Inverting Gradients against the paper's residual network"),
    "hull": (hulls, "the hull of the client's embeddings, after rounds over the paper's residual network"),
}


def main(arguments: Sequence[str]) -> int:
    """``hyperfed attack EXPERIMENT [key=value ...] [-o DIR]``."""
    if list(arguments[:1]) == ["membership"]:
        from hyperfed.privacy.membership import main as membership_main

        return membership_main(arguments[1:])
    parser = argparse.ArgumentParser(
        "hyperfed attack",
        description="Attack the messages of real clients, in float64, and report with controls.",
        epilog=EXAMPLES + "\nsettings and defaults: " + ", ".join(f"{k}={v}" for k, v in SETTINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    experiments = parser.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, (_, text) in EXPERIMENTS.items():
        one = experiments.add_parser(name, help=text)
        one.add_argument("settings", nargs="*", metavar="key=value")
        one.add_argument("-o", "--out", type=Path, default=Path("attack"), help="where the files go (default: ./attack)")
    experiments.add_parser("membership", help="was a record among a client's training data? ('... membership --help')", add_help=False)
    known = parse(parser, arguments, "settings")
    writable("--out", known.out)
    EXPERIMENTS[known.experiment][0](known.settings, known.out)
    return 0
