"""What the charts of a report say, as data: no browser needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperfed.report.html import build_page
from hyperfed.report.html_charts import accuracy_chart, cost_chart, gains_chart, labels_chart, short_names, similarity_chart
from hyperfed.report.html_report import section_of
from hyperfed.report.plots import headed, legend_below, plain_powers
from hyperfed.report.runs import Detail, RunFiles, read_run
from hyperfed.report.seeds import Group
from hyperfed.report.similarity import plot_similarity, separation
from made_runs import made
from runs import small_run


@pytest.fixture(scope="module")
def hfn(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    folder = tmp_path_factory.mktemp("charts") / "hfn"
    small_run(folder, "method=hfn", "model=resnet", "rounds=1")
    return read_run(folder)


def kernels(run: RunFiles, apart: list[float], places: int) -> RunFiles:
    """The run with three clients whose kernels differ so much, kept with so many digits."""
    a, b, c = apart
    cosine = (1 - np.array([[0, a, b], [a, 0, c], [b, c, 0]])).round(places)
    return replace(run, config=run.config | {"partition": {"name": "iid"}}, detail=Detail(similarity=cosine.tolist()))


def test_kernels_that_differ_in_the_seventh_digit_are_seen_to(hfn: RunFiles) -> None:
    run = kernels(hfn, [1.5e-7, 3e-7, 6e-7], 10)
    [trace] = similarity_chart(run, "HFN", None, separation(np.array(run.detail.similarity), None)).traces
    assert trace["zmin"] == 0 and trace["zmax"] == pytest.approx(6e-7)
    assert trace["z"][0] == pytest.approx([0, 1.5e-7, 3e-7], abs=1e-12)
    page = build_page("x", [section_of("digits", [Group("HFN", (run,))])])
    assert "<td>3.50e-07</td>" in page and "Kept with" not in page


def test_few_digits_are_said_not_drawn(hfn: RunFiles) -> None:
    rounding, steps = (kernels(hfn, apart, 6) for apart in ([1.5e-7, 2e-6, 1e-6], [1.2e-5, 3.3e-5, 2e-6]))
    page = build_page("x", [section_of("digits", [Group("HFN", (rounding,))])])
    assert (
        "cosines kept with 6 digits, too few to show a difference" in page and "<td>too small</td>" in page and "1 - cosine =" not in page
    )
    page = build_page("x", [section_of("digits", [Group("HFN", (steps,))])])
    assert "Kept with 6 digits, so in steps of 1e-6." in page and "<td>too small</td>" not in page


def test_long_names_are_cut_where_they_are_alike() -> None:
    names = ["HFN (hypernet.pace.embed 0.01)", "HFN (hypernet.pace.embed 1)", "FedAvg", "HFN (a 1, hypernet.pace.embed 1)"]
    short = short_names(names)
    assert "FedAvg" not in short and short[names[0]].endswith("embed 0.01)") and len(short[names[0]]) <= 24
    assert len({short.get(n, n) for n in names}) == 4


def test_what_a_dotted_line_is_stands_below_the_chart(hfn: RunFiles) -> None:
    def silent(name: str) -> Group:
        lines = [{**e, "bytes": 0} for e in hfn.evaluations]
        return Group(name.title(), (replace(hfn, evaluations=lines, config=hfn.config | {"method": {"name": name}}),))

    groups = [Group("HFN", (hfn,)), silent("centre"), silent("local")]
    assert "(Centre pools the data of all clients; Local sends nothing)" in accuracy_chart(groups, "bytes").note
    assert "Dotted" not in accuracy_chart(groups, "rounds").note + accuracy_chart(groups[:1], "bytes").note


def test_a_figure_cuts_nothing_off_and_covers_no_line() -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i in range(8):
        axes.plot([30, 700], [i, i + 1], label=f"a method with a long name {i}")
    axes.set_xscale("log")
    plain_powers(axes.xaxis)
    headed(axes, "a title that goes on " * 9)
    legend_below(axes)
    canvas.draw()
    inside = [tick.get_text() for tick in axes.get_xticklabels() if 30 <= tick.get_position()[0] <= 700]
    assert inside == ["50", "100", "200", "500"] and not axes.get_xticklabels(minor=True)
    [legend] = figure.legends
    assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0 and axes.bbox.height > 150
    assert axes.title.get_window_extent().x1 <= figure.bbox.x1


def test_kernels_in_a_figure_have_a_scale_in_powers_of_ten(hfn: RunFiles, tmp_path: Path) -> None:
    cosine = np.array(kernels(hfn, [1.5e-7, 3e-7, 6e-7], 10).detail.similarity)
    path = plot_similarity(cosine, None, tmp_path / "similarity.svg", "HFN")
    written = path.read_text(encoding="utf-8")
    assert "<!-- 6.0e-07 -->" in written and "<!-- 1 -->" in written and "0.5 -->" not in written


def test_plotly_shows_names_letter_for_letter(tmp_path: Path) -> None:
    """It takes <b> in a label for bold and &lt; for a bracket: whatever a run, a role or a class is called is given to it escaped."""
    name, seen = "<b>bold</b> & more than twenty-four letters", "&lt;b&gt;bold&lt;/b&gt; &amp; more than twenty-four letters"
    run = made(tmp_path, 1, [7, 9], f"run.name='{name}'", label_counts=[[5, 1], [2, 3]], class_names=["<i>cat", "dog"])
    run.detail.roles["<u>"] = 3
    group, other = Group(run.label, (run,)), Group("Other", (made(tmp_path, 1, [6, 8], "method=fedper"),))
    for chart in (accuracy_chart([group], "rounds"), accuracy_chart([group], "bytes"), gains_chart([group, other], other)):
        names = [(t["name"], t["hoverlabel"]) for t in chart.traces if "name" in t]
        assert names and set(map(str, names)) == {str((seen, {"namelength": -1}))}
    assert gains_chart([other, group], group).layout["yaxis"]["title"]["text"] == f"gain over {seen} (points)"
    chart = cost_chart([group, other])
    assert {t["name"] for t in chart.traces} == {"body", "head", "&lt;u&gt;"} and all("<u>" not in t["hovertemplate"] for t in chart.traces)
    alias = chart.layout["yaxis"]["labelalias"]
    assert list(alias) == [name] and alias[name].startswith("&lt;b&gt;bold") and "<" not in alias[name]
    assert labels_chart(run).traces[0]["y"] == ["&lt;i&gt;cat", "dog"]
