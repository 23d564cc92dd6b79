"""The charts of a report: what groups of runs (one per method, several seeds) look like over rounds, over bytes and over clients."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import ArrayLike

from hyperfed.core import Role
from hyperfed.report.comparison import KINDS
from hyperfed.report.html import Chart
from hyperfed.report.plots import silence
from hyperfed.report.runs import RunFiles
from hyperfed.report.seeds import Group
from hyperfed.report.similarity import Separation, borders, digits, distance
from hyperfed.run.evaluate import Evaluation

ROLES = [str(role) for role in Role]
WORST = 0.1
LONG = 24  # letters of a name beside a bar: a phone has room for no more
AXIS = {"showspikes": False, "zeroline": False}
ACCURACY = {**AXIS, "title": {"text": "accuracy (%)"}}


def literal(text: str) -> str:
    """As plotly.js shows it letter for letter: in every label and category it takes tags and entities for markup."""
    return escape(text, quote=False)


def named(text: str) -> dict[str, Any]:
    """A trace's name. Hovering cuts long ones, which must not happen within an entity."""
    name = literal(text)
    return {"name": name, "hoverlabel": {"namelength": -1}} if name != text else {"name": name}


def listed(values: ArrayLike, digits: int = 3) -> list[float]:
    """Numbers short enough for a page."""
    return np.asarray(values, dtype=float).round(digits).tolist()


def cividis(power: float) -> list[list[Any]]:
    """A colour scale for every kind of sight; ``power`` 2 gives small values more of it, as a square root does."""
    steps = np.linspace(0, 1, 17)
    return [[float(t**power), to_hex(colormaps["cividis"](t))] for t in steps]


def accuracy_chart(groups: Sequence[Group], over: str) -> Chart:
    """Mean personalised accuracy over "rounds" or over "bytes": mean over seeds as a line, least to greatest as a band."""
    traces: list[dict[str, Any]] = []
    silent = [g for g in groups if over == "bytes" and g.silent]
    spoken = [m for g in groups if g not in silent for m in g.megabytes(g.curve("before")[0])] or [0.0, 1.0]
    for i, group in enumerate(groups):
        for kind in KINDS:
            rounds, y = group.curve(kind)
            if not rounds:
                continue
            meta = {"method": i, "kind": kind}
            x: Sequence[float] = rounds if over == "rounds" else group.megabytes(rounds)
            if group in silent:
                x, y = [min((m for m in spoken if m > 0), default=0.0), max(spoken)], y[:, [-1, -1]]
                extra: dict[str, Any] = {
                    "mode": "lines",
                    "hovertemplate": f"%{{y:.1f}} %, {silence(group.runs[0])}",
                }
            else:
                label = "%{y:.1f} %" if over == "rounds" else "%{y:.1f} % after %{x:,.4g} MB (round %{customdata})"
                extra = {"mode": "lines+markers", "customdata": rounds, "hovertemplate": label}
            if len(y) > 1:
                band = {"x": [*listed(x), *listed(x)[::-1]], "y": [*listed(y.max(0)), *listed(y.min(0))[::-1]], "fill": "toself"}
                traces.append({**band, "type": "scatter", "mode": "none", "hoverinfo": "skip", "meta": meta})
            traces.append({"type": "scatter", "x": listed(x), "y": listed(y.mean(0)), **named(group.label), "meta": meta, **extra})
    title = "Accuracy over rounds" if over == "rounds" else "Accuracy over payload sent"
    axis = {**AXIS, "title": {"text": "round" if over == "rounds" else "payload of all clients so far (MB)"}}
    layout = {
        "xaxis": axis,
        "yaxis": ACCURACY,
        "showlegend": False,
        "hovermode": "closest" if len(groups) > 8 or over == "bytes" else "x unified",
    }
    note = "Filled markers: before fine-tuning; hollow: after it. Band (up to 8 methods shown): least to greatest of the seeds."
    if silent:
        note += f" Level lines without markers: the last accuracy of a method without payload ({_without_payload(silent)})."
    return Chart(title, _ends(groups), traces, layout, log="x", starts_log=over == "bytes", note=note)


def _without_payload(silent: Sequence[Group]) -> str:
    return "; ".join(f"{g.label} {silence(g.runs[0])}" for g in silent)


def _ends(groups: Sequence[Group]) -> str:
    ends = ", ".join(f"{g.label} {g.final('before')} % before and {g.final('after')} % after fine-tuning" for g in groups)
    return f"Mean personalised accuracy at the end: {ends}.".replace("- %", "no value")


def each_client(run: RunFiles, kind: str) -> np.ndarray:
    """Accuracy of every client in % at the last evaluation, [N], NaN without test data; empty where the run does not have it."""
    known = run.detail.clients
    if kind not in known:
        return np.empty(0)
    return 100 * np.asarray(Evaluation(np.array(known["tests"]), np.array(known[kind])).accuracies("before"))


def ranked(group: Group, kind: str, local: Group | None = None) -> tuple[np.ndarray, list[str]]:
    """Accuracies in % of the clients of all seeds, or what they gain over ``local`` of the same seed, ascending, and who they are."""
    alone = {run.config["seed"]: each_client(run, kind) for run in local.runs} if local else {}
    rows = []
    for run in group.runs:
        seed, values = run.config["seed"], each_client(run, kind)
        if local:
            other = alone.get(seed, np.empty(0))
            values = values - other if len(values) == len(other) else np.empty(0)
        name = f", seed {seed}" if len(group.runs) > 1 else ""
        rows += [(v, f"client {k}{name}") for k, v in enumerate(values.tolist()) if not np.isnan(v)]
    rows.sort(key=lambda row: row[0])
    return np.array([v for v, _ in rows]), [who for _, who in rows]


def _ranked_traces(groups: Sequence[Group], text: str, local: Group | None = None) -> list[dict[str, Any]]:
    traces = []
    for i, group in enumerate(groups):
        for kind in KINDS:
            y, who = ranked(group, kind, local)
            if len(y) and group is not local:
                x = 100 * (np.arange(len(y)) + 0.5) / len(y)
                mode = {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "line": {"shape": "hv", "width": 1.5},
                    "marker": {"size": 6, "maxdisplayed": 30},
                }
                hover = {"customdata": who, "hovertemplate": "%{customdata}: " + text, "meta": {"method": i, "kind": kind}}
                traces.append({**mode, "x": listed(x, 2), "y": listed(y, 2), **named(group.label), **hover})
    return traces


def _tuned_first(groups: Sequence[Group]) -> dict[str, Any]:
    """After fine-tuning only, until a button is pressed, where every run has it: two curves a method hide each other."""
    return {"meta": {"kind": "after"}} if all(len(ranked(g, "after")[0]) for g in groups) else {}


def _which(groups: Sequence[Group]) -> str:
    return " After fine-tuning, until a button (before, after, both) is pressed." if _tuned_first(groups) else ""


def clients_chart(groups: Sequence[Group]) -> Chart:
    """Every client's accuracy, sorted from worst to best; the worst tenth is shaded."""
    shade = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": 0,
        "x1": 100 * WORST,
        "y0": 0,
        "y1": 1,
        "fillcolor": "rgba(128,128,128,0.18)",
    }
    axis = {**AXIS, "title": {"text": "clients from worst to best (%)"}, "range": [0, 100]}
    layout = {"xaxis": axis, "yaxis": ACCURACY, "shapes": [{**shade, "line": {"width": 0}, "layer": "below"}], "showlegend": False}
    layout |= _tuned_first(groups)
    alt = "One curve per method over the clients sorted by accuracy; the table of clients gives mean, worst tenth and worst client."
    note = "Shaded: the worst 10 % of the clients." + _which(groups)
    return Chart("Accuracy of every client", alt, _ranked_traces(groups, "%{y:.1f} %"), layout, note=note)


def gains_chart(groups: Sequence[Group], local: Group) -> Chart:
    """Who gains and who loses against training alone."""
    axis = {**AXIS, "title": {"text": "clients from greatest loss to greatest gain (%)"}, "range": [0, 100]}
    zero = {"zeroline": True, "zerolinewidth": 2, "title": {"text": f"gain over {literal(local.runs[0].label)} (points)"}}
    layout = {"xaxis": axis, "yaxis": zero, "showlegend": False, **_tuned_first(groups)}
    alt = f"One curve per method over the clients sorted by gain over {local.label}; the table of clients counts who gains and who loses."
    traces = _ranked_traces(groups, "%{y:+.1f} points", local)
    return Chart(f"Gain of every client over {local.label}", alt, traces, layout, note="Below zero: better off alone." + _which(groups))


GAPS = 40
"""Up to so many cells across, a gap of one pixel between them leaves room for their colours, on a phone, too."""


def labels_chart(run: RunFiles) -> Chart:
    """Samples of each class on each client as a heat map; the longer of clients and classes runs across."""
    counts = np.array(run.detail.label_counts)
    names = [literal(name) for name in run.detail.class_names] or [str(c) for c in range(counts.shape[1])]
    clients = list(range(len(counts)))
    turned = counts.shape[0] < counts.shape[1]
    grid = counts if turned else counts.T
    shown = [[n or None for n in row] for row in grid.tolist()]
    classes = {"title": {"text": "class"}, "type": "category"}
    across, down = (classes, {"title": {"text": "client"}}) if turned else ({"title": {"text": "client"}}, classes)
    hover = ("class %{x}, client %{y}" if turned else "client %{x}, class %{y}") + ": %{z} samples<extra></extra>"
    x, y = (names, clients) if turned else (clients, names)
    bar = {"thickness": 10, "title": {"text": "samples", "side": "right"}}
    scale = {"colorscale": cividis(2), "zmin": 0, "zmax": int(counts.max()), "colorbar": bar}
    trace = {"type": "heatmap", "x": x, "y": y, "z": shown, **scale, "hovertemplate": hover}
    trace |= {"xgap": 1, "ygap": 1} if max(grid.shape) <= GAPS else {}
    kinds = (counts > 0).sum(1)
    alt = f"{counts.sum():,} samples on {len(counts)} clients; a client holds {kinds.min()} to {kinds.max()} of {counts.shape[1]} classes."
    plain = {"showgrid": False, "zeroline": False}
    layout = {"xaxis": {**across, **plain}, "yaxis": {**down, **plain, "autorange": "reversed"}}
    return Chart(
        f"Labels of the clients, seed {run.config['seed']}", alt, [trace], layout, note="No colour: the client has no sample of it."
    )


def similarity_chart(run: RunFiles, label: str, group: np.ndarray | None, found: Separation) -> Chart:
    """1 - cosine of the kernels generated for each two clients, on a scale of its own; lines part the groups."""
    cosine = np.array(run.detail.similarity)
    apart, places = distance(cosine), digits(cosine)
    lines: list[dict[str, Any]] = []
    for at in borders(group):
        for colour, width in (("#000000", 3), ("#ffffff", 1.2)):
            style = {"type": "line", "line": {"color": colour, "width": width}}
            across, along = (
                {"x0": -0.5, "x1": len(cosine) - 0.5, "y0": at, "y1": at},
                {"x0": at, "x1": at, "y0": -0.5, "y1": len(cosine) - 0.5},
            )
            lines += [{**style, **across}, {**style, **along}]
    hover = "client %{x} and client %{y}: 1 - cosine = %{z:.3e}<extra></extra>"
    bar = {"thickness": 10, "title": {"text": "1 - cosine", "side": "top"}, "tickformat": ".1e"}
    scale = {"colorscale": cividis(1), "reversescale": True, "zmin": 0, "zmax": float(apart.max().round(places)), "colorbar": bar}
    trace = {"type": "heatmap", "z": [listed(row, places) for row in apart], **scale, "hovertemplate": hover}
    plain = {"showgrid": False, "zeroline": False, "constrain": "domain", "title": {"text": "client"}}
    layout = {"xaxis": plain, "yaxis": {**plain, "autorange": "reversed", "scaleanchor": "x"}, "shapes": lines}
    alt = f"Mean of 1 - cosine over two different clients {1 - found.overall:.2e}" + (
        f"; within a group {1 - found.within:.2e}, between groups {1 - found.between:.2e}." if group is not None else "."
    )
    note = "Light: alike. Each picture has a scale of its own." + (" White lines: borders of the groups." if lines else "")
    note += f" Kept with {places} digits, so in steps of 1e-{places}." if places < 10 else ""
    title = f"Difference of generated kernels: {label}, seed {run.config['seed']}"
    return Chart(title, alt, [trace], layout, square=True, note=note)


def short_names(labels: Sequence[str]) -> dict[str, str]:
    """Long names cut in the middle, each as long as it takes to tell it from the others."""
    out = {name: name for name in labels}
    for name in (n for n in labels if len(n) > LONG):
        for room in range(LONG, len(name)):
            cut = f"{name[: room // 2 - 1].rstrip()}…{name[-((room - 1) // 2) :].lstrip()}"
            if cut not in out.values():
                out[name] = cut
                break
    return {name: cut for name, cut in out.items() if cut != name}


def cost_chart(groups: Sequence[Group]) -> Chart:
    """Elements up + down of one client in one round, stacked by what the tensors are for."""
    known = [(i, g) for i, g in enumerate(groups) if g.runs[0].detail.roles]
    traces = []
    for role in sorted(
        {r for _, g in known for r in g.runs[0].detail.roles}, key=lambda r: (ROLES.index(r) if r in ROLES else len(ROLES), r)
    ):
        values = [g.runs[0].detail.roles.get(role, 0) for _, g in known]
        meta = {"role": ROLES.index(role) if role in ROLES else len(ROLES), "methods": [i for i, _ in known]}
        hover = "%{x:,} elements<extra>" + literal(role) + "</extra>"
        bar = {"type": "bar", "orientation": "h", **named(role), "x": values, "y": [g.label for _, g in known], "hovertemplate": hover}
        traces.append({**bar, "meta": meta})
    names = [g.label for _, g in known]
    seen = {name: literal(cut) for name, cut in ({n: n for n in names} | short_names(names)).items()}
    alias = {name: text for name, text in seen.items() if text != name}
    alt = "; ".join(f"{g.label}: " + ", ".join(f"{r} {n:,}" for r, n in g.runs[0].detail.roles.items()) for _, g in known) + "."
    extra = {t["name"] for t in traces} & {"stats", "other"}
    layout = {
        "barmode": "stack",
        "height": 130 + 30 * len(known),
        "xaxis": {"title": {"text": "elements up + down,<br>one client and round"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "showgrid": False, "type": "category", "labelalias": alias},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "margin": {"t": 34},
        "showlegend": True,
    }
    note = "stats: running statistics; other: ids, counts and a method's own networks. Neither counts as trained elements." if extra else ""
    return Chart("Cost of a round by role of tensor", alt, traces, layout, note=note)
