"""Tables of results, for a terminal and as Markdown."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from hyperfed.report.runs import RunFiles


def percent(value: float | None) -> str:
    """0.8765 -> 87.7 %; a dash where there is no value."""
    return "-" if value is None else f"{100 * value:.1f} %"


def human_bytes(value: float) -> str:
    """1234567 -> 1.2 MB (decimal units)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


COLUMNS = (
    "method",
    "before: mean",
    "p10",
    "after: mean",
    "p10",
    "elements / client, round",
    "bytes / client, round",
    "total bytes",
    "CPU s",
    "rounds",
)
NOTE = (
    "Accuracy of all clients' personalised models on their own test data, before and after fine-tuning: "
    "mean and 10th percentile over clients, unweighted. Elements: trained parameters up + down of one client "
    "in one round; running statistics of batch norm count in the bytes only."
)


def guarantee(run: RunFiles) -> str:
    """What a run's differential privacy amounts to at its end."""
    spent = run.last.get("privacy")
    if not spent:
        return "-"
    return f"ε = {'∞' if spent['epsilon'] is None else format(spent['epsilon'], '.3g')}, δ = {spent['delta']:g} per {spent['unit']}"


def row(run: RunFiles) -> tuple[str, ...]:
    """One run as cells."""
    last, after = run.last, run.last["after"] or {}
    rounds = f"{last['round']}" + ("" if last["round"] == run.config["rounds"] else f" of {run.config['rounds']}")
    return (
        run.label,
        percent(last["before"]["mean"]),
        percent(last["before"]["p10"]),
        percent(after.get("mean")),
        percent(after.get("p10")),
        f"{run.per_round.trainable:,}",
        human_bytes(run.per_round.bytes),
        human_bytes(last["bytes"]),
        f"{last['cpu_seconds']:.1f}",
        rounds,
    )


HEADINGS = (
    "method",
    "before\nmean %",
    "\np10 %",
    "after\nmean %",
    "\np10 %",
    "elements\na round",
    "bytes\na round",
    "bytes\nin all",
    "CPU s",
)


def terminal_table(runs: Sequence[RunFiles]) -> Table:
    """The comparison for a terminal of 80 columns; elements and bytes a round are those of one client; an unfinished run says so."""
    table = Table(
        title=escape(title(runs)), caption=NOTE, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i), overflow="fold")  # names give way, numbers do not
    private = any("privacy" in run.last for run in runs)
    if private:
        table.add_column("privacy", justify="right")
    for run in runs:
        first, *cells, rounds = (cell.removesuffix(" %") for cell in row(run))
        table.add_row(escape(f"{first} ({rounds} rounds)" if " of " in rounds else first), *cells, *([guarantee(run)] if private else []))
    return table


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:]]) + "\n"


def markdown_table(runs: Sequence[RunFiles]) -> str:
    """The comparison as Markdown."""
    private = any("privacy" in run.last for run in runs)
    columns = COLUMNS + (("privacy",) if private else ())
    return markdown(columns, [row(run) + ((guarantee(run),) if private else ()) for run in runs]) + "\n" + NOTE + "\n"


def title(runs: Sequence[RunFiles]) -> str:
    """What the runs have in common: data, partition, clients; 'different settings' where they differ."""
    texts = {describe_setting(run) for run in runs}
    return texts.pop() if len(texts) == 1 else "runs of different settings: " + "; ".join(sorted(texts))


def describe_setting(run: RunFiles) -> str:
    """Data set, partition, clients, participation and seed in one line."""
    return f"{describe_data(run)}, {run.config['participation']:g} of them a round, seed {run.config['seed']}"


def describe_data(run: RunFiles) -> str:
    """Data set, partition and number of clients: what runs must share to be compared."""
    c = run.config
    spec = ", ".join(f"{k} {v}" for k, v in c["partition"].items() if k not in ("name", "min_examples"))
    split = c["partition"]["name"] + (f" ({spec})" if spec else "")
    part = "" if c["data"]["fraction"] == 1 else f", {c['data']['fraction']:g} of the data"
    return f"{c['dataset']['name']}{part}, {split}, {c['num_clients']} clients"
