"""``make docs``: every table and plot of README and docs from the kept runs in results/. Text around them is written by hand.

A block ``<!-- generated:NAME -->`` ... ``<!-- /generated -->`` of a page is replaced by what the function NAME returns.
"""

import json
import re
from pathlib import Path
from statistics import fmean

from defences_tables import defences_digits, defended, membership_digits, started

from hyperfed.core import UserError
from hyperfed.core.files import write_text
from hyperfed.engine.round import sample
from hyperfed.evidence.page import completeness, result
from hyperfed.evidence.plans import TABLE2, Ask, plan
from hyperfed.evidence.store import Store
from hyperfed.evidence.tables import ACCURACY, entries, spread
from hyperfed.privacy.command import write_table
from hyperfed.privacy.resnet import hull_table
from hyperfed.privacy.sweep import sweep_table
from hyperfed.report.html_load import FAILED
from hyperfed.report.plots import plot_accuracy
from hyperfed.report.properties import properties_table
from hyperfed.report.runs import RunFiles, read_run
from hyperfed.report.seeds import Group, group_by_seed, plot_groups, seeds_table
from hyperfed.report.tables import markdown, markdown_table
from hyperfed.run.config import identity

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/img"
NOWHERE = ROOT / "nowhere"  # runs under way on this machine are no part of the pages
PAGES = ("README.md", "docs/hfn.md", "docs/methods/README.md", "docs/evidence.md", "docs/privacy.md", "docs/defences.md")


def kept(topic: str) -> list[RunFiles]:
    """The kept runs of a topic, by name."""
    return [read_run(p) for p in sorted((ROOT / "results" / topic).glob("*.json")) if not p.name.endswith(FAILED)]


def ordered(groups: list[Group], names: tuple[str, ...]) -> list[Group]:
    """The groups with these labels, in this order."""
    found = {g.label: g for g in groups}
    return [found[n] for n in names if n in found]


def quickstart() -> str:
    """README's table and picture."""
    order = {"HFN": 0, "FedAvg": 1, "FedPer": 2, "Local": 3}
    runs = sorted(kept("quickstart"), key=lambda r: order[r.label])
    plot_accuracy(runs, IMAGES / "quickstart_rounds.png", "round")
    picture = "![accuracy over rounds](docs/img/quickstart_rounds.png)"
    return f"`make run` (scikit-learn's digits, 20 clients, Dirichlet 0.5, half of them a round):\n\n{markdown_table(runs)}\n{picture}\n"


def variants() -> str:
    """docs/hfn.md: starts and paces on digits."""
    groups = group_by_seed(kept("hfn_digits"))
    first = ("FedAvg", "HFN", "embeddings at pace 1", "Kaiming start", "Kaiming start, own embeddings", "normal start", "Local")
    title = "digits, 20 clients, Dirichlet 0.5; mean, least and greatest of three seeds"
    plot_groups(ordered(groups, first), IMAGES / "hfn_variants.png", "after", title)
    return f"![variants](img/hfn_variants.png)\n\n{seeds_table(groups)}"


def quick(dataset: str) -> str:
    """docs/hfn.md: the comparison with FedAvg on a fifth of MNIST or CIFAR-10."""
    groups = group_by_seed(kept(f"quick_{dataset}"))
    trained = [group for group in groups if not group.runs[0].config["finetune"]["scope"]]  # the others are the same before fine-tuning
    plot_groups(trained, IMAGES / f"quick_{dataset}.png", "before", f"a fifth of {dataset}, 20 clients, Dirichlet 0.5")
    return f"{seeds_table(groups)}\n![{dataset}](img/quick_{dataset}.png)\n"


def methods_digits() -> str:
    """docs/methods: all methods, plain and over HFN."""
    return seeds_table(group_by_seed(kept("methods_digits")))


def evidence(name: str, ask: Ask, part: str = "") -> str:
    """docs/evidence.md: a table or figure of the HyperFedNet paper, as far as it has been run; its pictures in docs/img/``part``."""
    store = Store(ROOT / "results/evidence")
    found = entries(plan(name, ask), store, NOWHERE)
    if store.damaged:
        raise UserError(f"the store has damaged files: {', '.join(sorted(store.damaged))}.")
    begun = {(cell.dataset, cell.split) for cell, entry in found.items() if entry.runs}
    text = f"**{completeness(found)}.**"
    if missing := sorted({f"{cell.dataset} {cell.split}" for cell in found if (cell.dataset, cell.split) not in begun}):
        text += f" Of {', '.join(missing)} nothing is complete."
    if not begun:
        return text + "\n"
    tables, images = result(name, {cell: entry for cell, entry in found.items() if (cell.dataset, cell.split) in begun}, IMAGES / part)
    shown = [f"![{image.alt}]({image.path.relative_to(ROOT / 'docs').as_posix()})" for image in images]
    return "\n\n".join([text, *shown, *(f"{t.caption}\n\n{markdown(t.columns, t.rows)}\n{t.note}" for t in tables)]) + "\n"


def before_and_after(scale: str, datasets: tuple[str, ...] = ("cifar10", "cifar100")) -> str:
    """docs/evidence.md: what fine-tuning adds, over the seeds there are."""
    cells = plan("table2", Ask(scale, datasets, seeds=(1, 2, 3)))
    found = entries(cells, Store(ROOT / "results/evidence"), NOWHERE)
    columns = ["method and cell", "before fine-tuning", "after", "objective, last round", "seeds"]
    rows = []
    for cell, entry in found.items():
        if entry.runs:
            before = spread([100 * run.last["before"]["weighted"] for run in entry.runs])
            objective = fmean(run.last["train_loss"] for run in entry.runs)
            name = f"{cell.row}, {cell.dataset} {cell.split}"
            rows.append([name, before, spread(entry.values), f"{objective:.2f}", str(len(entry.runs))])
    note = f"{ACCURACY.replace(' after fine-tuning', '')} Mean ± sample standard deviation over the seeds there are. "
    note += "Objective: what the clients minimised in training. Of FedProx, FedGen and FedDyn it holds more terms than the loss (FedDyn's "
    note += "may be negative), FedFomo trains on four fifths of the data: compare those rows with no others."
    absent: dict[str, list[str]] = {}
    for cell, entry in found.items():
        if not entry.runs:
            absent.setdefault(f"{cell.dataset} {cell.split}", []).append(cell.row)
    if absent:
        told = [f"{where} {', '.join(names) if len(names) < len(TABLE2) else 'at all'}" for where, names in absent.items()]
        note += f" Not run: {'; '.join(told)}."
    return f"{markdown(columns, rows)}\n{note}\n"


def causes() -> str:
    """docs/evidence.md: cells of Table 2 with one setting changed, beside the cells themselves."""

    def cell(run: RunFiles) -> str:
        return json.dumps(
            [*(run.config[key] for key in ("method", "dataset", "partition", "seed", "rounds")), run.config["hypernet"] is None]
        )

    def changed_in(run: RunFiles, twin: RunFiles) -> list[str]:
        ours, theirs = identity(twin.config), identity(run.config)
        names = sorted(k for k in {*ours, *theirs} if not k.startswith("eval."))  # how often it is evaluated changes no result
        return [f"{k} = {theirs.get(k)} (was {ours.get(k)})" for k in names if ours.get(k) != theirs.get(k)]

    both = [*kept("evidence/mini"), *kept("evidence/paper")]
    table2 = [r for r in both if r.config["data"]["validation"] is None and not (r.config["hypernet"] or {}).get("share")]
    rows = []
    for run in kept("causes"):
        twin = min((other for other in table2 if cell(other) == cell(run)), key=lambda other: len(changed_in(run, other)))
        changed = changed_in(run, twin)
        numbers = [f"{100 * r.last[kind]['weighted']:.1f}" for kind in ("before", "after") for r in (twin, run)]
        where = f"{twin.label}, {run.config['dataset']['name']} {run.config['partition']['name']}"
        rows.append([where, str(run.config["num_clients"]), ", ".join(changed), *numbers])
    columns = ["method and cell", "clients", "changed", "before: Table 2", "before: changed", "after: Table 2", "after: changed"]
    return f"{markdown(columns, rows)}\n{ACCURACY.replace(' after fine-tuning', '')} Before and after fine-tuning; one seed.\n"


def trials_at_paper_scale() -> str:
    """docs/evidence.md: learning rates tried at the paper's scale, on a validation part; no result of Table 2."""
    rows = []
    for run in kept("evidence/paper"):
        if run.config["data"]["validation"] is not None:
            optim, where = run.config["optim"], f"{run.config['dataset']['name']} {run.config['partition']['name']}"
            rate = f"{optim['lr']:g}, {optim['schedule']}"
            numbers = [f"{100 * run.last[kind]['weighted']:.1f}" for kind in ("before", "after")]
            hardware = run.facts["hardware"]
            device = hardware["device"] + (", bf16 rounded" if hardware.get("bf16") == "rounded" else "")
            rows.append([f"{run.label}, {where}", rate, str(run.last["round"]), *numbers, device])
    columns = ["method and cell", "learning rate", "rounds", "before fine-tuning", "after", "device"]
    return f"{markdown(columns, rows)}\n{ACCURACY.replace(' after fine-tuning', '').replace(' test ', ' validation ')}\n"


def at_paper_scale(dataset: str, methods: tuple[str, ...], split: str = "non-IID") -> list[RunFiles]:
    """The runs of Table 2, in the order of ``methods``, as far as they have been made."""
    cells = plan("table2", Ask("paper", (dataset,), (split,), methods))
    found = {cell.row: entry.runs for cell, entry in entries(cells, Store(ROOT / "results/evidence"), NOWHERE).items()}
    return [found[name][0] for name in methods if found[name]]


def away(dataset: str, split: str = "non-IID") -> str:
    """docs/evidence.md: personal models by the rounds since their client last trained, which follow from the seed."""
    runs = {run.label: run for run in at_paper_scale(dataset, ("HFN", "FedAvg", "FedPer", "Local"), split)}
    config = runs["HFN"].config
    cell = ("dataset", "partition", "rounds")
    for run in kept("causes"):
        if run.config["finetune"]["scope"] == ["stats"] and all(run.config[key] == config[key] for key in cell):
            runs["HFN, statistics alone"] = run
    last = dict.fromkeys(range(config["num_clients"]), 0)
    for number in range(1, config["rounds"] + 1):
        last |= dict.fromkeys(sample(number, config["num_clients"], config["participation"], config["seed"]), number)

    def accuracy(run: RunFiles, ids: list[int]) -> str:
        right, tests = run.detail.clients, sum(run.detail.clients["tests"][k] for k in ids)
        return " → ".join(f"{100 * sum(right[kind][k] for k in ids) / tests:.1f}" for kind in ("before", "after"))

    rows = []
    for first, end in ((0, 0), (1, 2), (3, 5), (6, 9), (10, config["rounds"])):
        ids = [k for k, number in last.items() if first <= config["rounds"] - number <= end]
        rounds = str(first) if first == end else f"{first} to {end}" if end < config["rounds"] else f"{first} or more"
        rows.append([rounds, str(len(ids)), *(accuracy(run, ids) for run in runs.values())])
    note = "Accuracy in % of these clients' personalised models before → after fine-tuning, weighted by test samples, at the last round."
    columns = [f"{dataset} {split}, rounds since the client last trained", "clients", *runs]
    return f"{markdown(columns, rows)}\n{note}\n"


def paper_scale(level: float, folder: str) -> str:
    """README, docs/evidence.md: HFN and FedAvg at the paper's scale, and what it takes them to come to ``level`` % before fine-tuning."""
    runs = at_paper_scale("cifar10", ("HFN", "FedAvg"))
    plot_accuracy(runs, IMAGES / "paper_cifar10.png", "bytes")

    def both(values: list[float], digits: int) -> str:
        return " and ".join(f"{value:.{digits}f}" for value in values)

    after, before = (both([100 * run.last[kind]["weighted"] for run in runs], 1) for kind in ("after", "before"))
    reached = [next(e for e in run.evaluations if 100 * e["before"]["weighted"] >= level) for run in runs]
    sent, rounds = both([e["bytes"] / 1e9 for e in reached], 2), both([e["round"] for e in reached], 0)
    text = f"HFN and FedAvg have {after} % after fine-tuning, {before} % before it (of all clients, weighted; one seed, round "
    text += f"{runs[0].last['round']}). They come to {level:g} % before fine-tuning with {sent} GB of all clients' traffic, "
    text += f"rounds {rounds} (looked at every fourth)."
    return f"{text}\n\n![CIFAR-10 non-IID, 100 clients, 150 rounds: accuracy over the bytes sent]({folder}/paper_cifar10.png)\n"


BLOCKS = {
    "trials_paper": trials_at_paper_scale,
    "causes": causes,
    "before_and_after": lambda: before_and_after("mini"),
    "before_and_after_paper": lambda: before_and_after("paper", ("mnist", "cifar10", "cifar100")),
    "paper_scale": lambda: paper_scale(50, "docs/img"),
    "away_mnist": lambda: away("mnist"),
    "away_mnist_iid": lambda: away("mnist", "IID"),
    "away_cifar10": lambda: away("cifar10"),
    "curves_paper": lambda: paper_scale(55, "img"),
    "quickstart": quickstart,
    "variants": variants,
    "quick_mnist": lambda: quick("mnist"),
    "quick_cifar10": lambda: quick("cifar10"),
    "properties": properties_table,
    "methods_digits": methods_digits,
    "table2_mini": lambda: evidence("table2", Ask("mini")),
    "table2_seeds": lambda: evidence("table2", Ask("mini", ("cifar10", "cifar100"), ("non-IID",), SEEDS_OF, (1, 2, 3)), "three_seeds"),
    "table2_paper": lambda: evidence("table2", Ask("paper", ("mnist", "cifar10"), methods=("HFN", "FedAvg", "FedPer", "Local")), "paper"),
    "table3_mini": lambda: evidence("table3", Ask("mini")),
    "table4_mini": lambda: evidence("table4", Ask("mini", ("cifar10",))),
    "readings_mini": lambda: evidence("readings", Ask("mini", ("cifar10", "cifar100"))),
    "readings_seeds": lambda: evidence("readings", Ask("mini", ("cifar10", "cifar100"), ("non-IID",), seeds=(1, 2, 3))),
    "readings_cifar10": lambda: evidence("readings", Ask("mini", ("cifar10",))),
    "fig3_mini": lambda: evidence("fig3", Ask("mini")),
    "fig5_mini": lambda: evidence("fig5", Ask("mini", ("mnist", "cifar10"))),
    "defences_digits": defences_digits,
    "defended": defended,
    "membership_digits": membership_digits,
    "privacy_fig4": lambda: write_table(ROOT / "results/privacy", "", "fig4"),
    "privacy_resnet": lambda: write_table(ROOT / "results/privacy", "resnet_", "resnet"),
    "privacy_starts": started,
    "privacy_hull": lambda: hull_table(json.loads((ROOT / "results/privacy/hull_mnist.json").read_text(encoding="utf-8"))),
    "privacy_sweep": lambda: sweep_table(json.loads((ROOT / "results/privacy/sweep_mnist.json").read_text(encoding="utf-8"))["rows"]),
}


SEEDS_OF = ("HFN", "FedAvg", "FedPer", "FedRep", "Local")


def fill(text: str) -> str:
    """Replace every generated block of a page."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{BLOCKS[match[2]]()}\n<!-- /generated -->"

    return re.sub(r"(<!-- generated:(\w+) -->).*?<!-- /generated -->", block, text, flags=re.DOTALL)


def main() -> None:
    """Fill all pages."""
    for page in PAGES:
        path = ROOT / page
        if path.exists():
            write_text(path, fill(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
