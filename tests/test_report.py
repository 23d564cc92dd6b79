"""What a report says of runs: numbers with a known answer, files that are damaged, and what a page is made of."""

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image as Picture

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.evidence import paper
from hyperfed.report.comparison import comparison, distinct, latex, measures, played, published, write_tables
from hyperfed.report.html import Image, Section, Table, build_page
from hyperfed.report.html_charts import each_client, ranked
from hyperfed.report.html_load import load
from hyperfed.report.html_report import report, section_of, settings
from hyperfed.report.runs import RunFiles, keep
from hyperfed.report.seeds import Group, group_by_seed
from hyperfed.report.similarity import group_of_clients, separation
from made_runs import made
from runs import composed, small_run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedPer and Local, one seed each, played and kept."""
    folder = tmp_path_factory.mktemp("report")
    for method in ("fedper", "local"):
        small_run(folder / "runs" / method, f"method={method}", "rounds=2", "eval.finetune=always")
    assert main(["keep", str(folder / "runs/fedper"), str(folder / "runs/local"), "-o", str(folder / "kept")]) == 0
    return folder / "kept"


def test_mean_spread_and_difference_to_the_paper(tmp_path: Path) -> None:
    """After fine-tuning (8 + 10 + 6) / 30 = 80 % and 90 %: 85 ± 7.1, 3 points below a paper's 88; p10 of 60, 80, 100 is 64."""
    group = Group("FedAvg", (made(tmp_path, 1, [7, 9, 5]), made(tmp_path, 2, [8, 8, 8])))
    row = measures(group, {"FedAvg": 88.0})
    assert row["after"] == pytest.approx(85) and row["after_std"] == pytest.approx(50**0.5) and row["difference"] == pytest.approx(-3)
    assert row["after_p10"] == pytest.approx((64 + 90) / 2) and row["bytes_total"] == 3000 and row["rounds"] == "3"
    columns, [cells], note = comparison([group], {"FedAvg": 88.0})
    assert cells[columns.index("after: mean %")] == "85.0 ± 7.1" and cells[columns.index("minus paper, weighted")] == "-3.0"
    assert group.final("after") == "85.0 ± 7.1" and "sample standard deviation" in note
    alone = replace(group, runs=group.runs[:1])
    assert alone.final("after") == "80.0" and measures(alone)["after_std"] is None and comparison([alone])[1][0][3] == "80.0"
    assert "minus the paper's figure" in note and "paper %" not in comparison([group])[0]


def test_the_papers_figure_beside_accuracy_weighted_by_test_samples(tmp_path: Path) -> None:
    """FedPer on CIFAR-10, IID and Dirichlet 0.5; no figure for other data, another partition, or a method over HFN; none without tuning."""

    def run(*overrides: str) -> RunFiles:
        return made(tmp_path, 1, [7, 9], "method=fedper", "dataset=cifar10", *overrides)

    iid, dirichlet = (published([Group("FedPer", (run(p),))])["FedPer"] for p in ("partition=iid", "partition=dirichlet"))
    assert (iid, dirichlet) == tuple(paper.accuracy("FedPer", "cifar10", split) for split in ("IID", "non-IID")) and iid != dirichlet
    for other in (("partition.alpha=0.1",), ("partition=pathological",), ("dataset=digits",), ("hyper=hfn", "model=resnet")):
        assert published([Group("x", (run(*other),))]) == {}
    tuned, plain = run(), run()
    tuned.last["after"]["weighted"] = 0.6
    for e in plain.evaluations:
        e["after"] = None
    row = measures(Group("FedPer", (tuned,)), {"FedPer": 50.0})
    assert row["after"] == pytest.approx(90) and row["weighted"] == pytest.approx(60) and row["difference"] == pytest.approx(10)
    assert measures(Group("FedPer", (plain,)), {"FedPer": 50.0})["difference"] is None
    keep(run(), tmp_path / "kept")
    report([tmp_path / "kept"], tmp_path / "a.html", tables=tmp_path / "t")
    page = (tmp_path / "a.html").read_text()
    said = ("Beside Table 2", "minus paper, weighted</th>", f"<td>{dirichlet:.2f}</td>", "may differ from that of these runs")
    assert all(text in page for text in said)
    assert "minus paper, weighted" in (tmp_path / "t/comparison.md").read_text()


def test_an_unfinished_run_never_looks_complete(tmp_path: Path) -> None:
    run = made(tmp_path, 1, [7, 9], "rounds=9")
    assert played([run]) == "3 of 9" and played([made(tmp_path, 2, [7, 9])]) == "3"
    page = build_page("x", [section_of("digits", [Group("FedAvg", (run,))])])
    assert "Unfinished, so no final result: FedAvg, seed 1: 3 of 9 rounds." in page and "<td>3 of 9</td>" in page


def test_runs_of_unequal_length_are_compared_where_all_of_them_are(tmp_path: Path) -> None:
    """Accuracy, bytes and CPU seconds after round 2, the last that both have; 60 % is the mean of 40 % and 80 %."""
    row = measures(Group("FedAvg", (made(tmp_path, 1, [7, 9], rounds=4), made(tmp_path, 2, [7, 9], rounds=2))))
    assert (row["before"], row["bytes_total"], row["cpu_seconds"]) == pytest.approx((60, 2000, 2))


def test_what_presets_refer_to_does_not_part_seeds(tmp_path: Path) -> None:
    """``dataset.paper`` came with a later version: the third seed of a setting stays its third seed."""
    runs = [made(tmp_path, seed, [5, 6]) for seed in (1, 2)]
    runs[1].config["dataset"]["paper"] = {"rounds": 90}
    (group,) = group_by_seed(runs)
    assert [r.config["seed"] for r in group.runs] == [1, 2]


def test_methods_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [made(tmp_path, 1, [7, 9]), made(tmp_path, 1, [7, 9], "optim.lr=0.5")]
    labels = [g.label for g in distinct(group_by_seed(runs))]
    assert labels == [f"FedAvg (optim.lr {runs[0].config['optim']['lr']})", "FedAvg (optim.lr 0.5)"]


def test_versions_are_not_mixed_in_one_table(tmp_path: Path) -> None:
    """Refused as seeds of one method and as methods of one table; on other data they may differ."""
    old, new = made(tmp_path, 1, [7, 9]), made(tmp_path, 2, [7, 9])
    new.facts["versions"]["hyperfed"] = "1"
    kept = [keep(run, tmp_path / "kept") for run in (old, new)]
    with pytest.raises(UserError, match=r"^results of different versions.* run1.json with 0 and run2.json with 1; repeat one of them\.$"):
        report(kept, tmp_path / "a.html")
    new.config["partition"] = {"name": "iid"}
    report([kept[0], keep(new, tmp_path / "kept")], tmp_path / "a.html")


def test_revisions_of_a_method_are_not_mixed_in_one_table(tmp_path: Path) -> None:
    """Those of different methods are no revisions of one; runs from before there were any are of the first."""
    first, second, other = made(tmp_path, 1, [7, 9]), made(tmp_path, 2, [7, 9]), made(tmp_path, 3, [7, 9], "method=fedprox")
    second.facts["versions"] |= {"method": 2}
    other.facts["versions"] |= {"method": 3}
    kept = [keep(run, tmp_path / "kept") for run in (first, second, other)]
    report([kept[0], kept[2]], tmp_path / "a.html")
    told = r"^results of different versions of fedavg .* run1.json with revision 1 and run2.json with revision 2; repeat one of them\.$"
    with pytest.raises(UserError, match=told):
        report(kept, tmp_path / "a.html")


def test_settings_that_differ_are_told_by_value(tmp_path: Path) -> None:
    """Only methods that have a setting stand beside it, so the table is as wide for many methods as for two."""
    methods = {"FedAvg": "fedavg", "FedProx": "fedprox", "FedRep": "fedrep"}
    groups = [Group(label, (made(tmp_path, 1, [7, 9], f"method={name}"),)) for label, name in methods.items()]
    tables = [b for s in section_of("digits", groups).blocks if isinstance(s, Section) for b in s.blocks if isinstance(b, Table)]
    [table] = [t for t in tables if t.caption == "Settings in which the methods differ"]
    assert all(len(row) == 3 and row[1] for row in table.rows)
    mu = groups[1].runs[0].config["method"]["mu"]
    assert ["method.mu", f"{mu}", "FedProx"] in table.rows and ["method.name", "fedavg", "FedAvg"] in table.rows


def test_other_data_is_another_section(tmp_path: Path) -> None:
    runs = [made(tmp_path, 1, [7, 9]), made(tmp_path, 1, [7, 9], "partition=iid"), made(tmp_path, 2, [7, 9])]
    assert [len(groups[0].runs) for groups in settings(runs).values()] == [2, 1]
    assert list(settings(runs))[1] == "digits, iid, 2 clients"


def test_who_gains_over_local(tmp_path: Path) -> None:
    """Client 1 without test data is no client to compare; 70 - 60 = +10, 50 - 90 = -40."""
    run, alone = made(tmp_path, 1, [7, 0, 5]), made(tmp_path, 1, [6, 0, 9], "method=local")
    for r in (run, alone):
        r.detail.clients["tests"][1] = r.detail.clients["after"][1] = 0
    values, who = ranked(Group("FedAvg", (run,)), "before", Group("Local", (alone,)))
    assert values.tolist() == pytest.approx([-40, 10]) and who == ["client 2", "client 0"]
    assert np.isnan(each_client(run, "before")[1])
    text = build_page("x", [section_of("digits", [Group("FedAvg", (run,)), Group("Local", (alone,))])])
    assert "<td>1</td><td>1</td><td>0</td><td>-15.0</td>" in text


def test_similarity_within_and_between_groups(tmp_path: Path) -> None:
    """Clients 0, 1, 2 and 3, 4: pairs of one group at 0.9, of two at 0.1; of 20 ordered pairs 8 are of one group."""
    config = composed(tmp_path, "partition=groups", "partition.num_groups=2", "num_clients=5")
    group = group_of_clients(config)
    assert group is not None and group.tolist() == [0, 0, 0, 1, 1]
    cosine = np.where(group[:, None] == group[None, :], 0.9, 0.1)
    np.fill_diagonal(cosine, 1)
    assert separation(cosine, group) == pytest.approx(((8 * 0.9 + 12 * 0.1) / 20, 0.9, 0.1, 0.8))
    assert np.isnan(separation(cosine, None).difference)
    assert group_of_clients(composed(tmp_path)) is None


def test_tables_for_papers(tmp_path: Path) -> None:
    groups = [Group("Fed_A & B", (made(tmp_path, 1, [7, 9]),))]
    paths = write_tables(groups, None, tmp_path / "t", "50 % of it")
    texts = {p.suffix: p.read_text() for p in paths}
    assert "| Fed_A & B | 80.0 |" in texts[".md"]
    assert r"Fed\_A \& B & 80.0 &" in texts[".tex"] and r"\caption{50 \% of it}" in texts[".tex"]
    [row] = csv.DictReader(texts[".csv"].splitlines())
    assert float(row["before"]) == pytest.approx(80) and row["method"] == "Fed_A & B" and row["paper"] == ""
    assert r"1.0 $\pm$ 0.5 & --" in latex(("a", "b"), [("1.0 ± 0.5", "-")], "")


class Outline(HTMLParser):
    """Heading levels, charts' descriptions, and whether any tag points outside the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.plots: list[str] = []
        self.outside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if given.get("class") == "plot":
            self.plots.append(given["aria-label"])
        self.outside += [v for n, v in given.items() if n in ("src", "href", "action") and not v.startswith(("#", "data:"))]


def test_the_page_of_kept_runs(kept: Path, tmp_path: Path) -> None:
    assert main(["report", str(kept), "-o", str(tmp_path / "a.html"), "--title", "Two <methods>"]) == 0
    page = (tmp_path / "a.html").read_text()
    outline = Outline(page)
    assert outline.outside == [] and len(page) < 2_500_000
    assert outline.levels[0] == 1 and all(b <= a + 1 for a, b in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(outline.plots) == 6 and all(len(text) > 40 for text in outline.plots)
    assert "<h1>Two &lt;methods&gt;</h1>" in page and "FedPer" in page
    report([kept / path.name for path in sorted(kept.iterdir())], tmp_path / "b.html", title="Two <methods>")
    assert (tmp_path / "b.html").read_text() == page


def test_trials_and_failures_are_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run measured on validation data is left out and counted, and shown where there is nothing else; a failure's note is no run."""
    result, trial = made(tmp_path, 1, [7, 9]), made(tmp_path, 2, [7, 9], "data.validation=0.2")
    kept = [keep(run, tmp_path / "kept") for run in (result, trial)]
    (tmp_path / "kept/fedavg.failed.json").write_text('{"identity": "1", "message": "diverged"}')
    pages = []
    for given in (tmp_path / "kept", kept[0], kept[1]):
        assert main(["report", str(given), "-o", str(tmp_path / "a.html")]) == 0
        pages.append((tmp_path / "a.html").read_text())
    assert capsys.readouterr().err == "" and not any("could not be read" in page for page in pages)
    assert "Left out: 1 trial (data.validation is set" in pages[0] and "1 run of 1 method: FedAvg. Seeds 1;" in pages[0]
    assert "data.validation is set" not in pages[1] and "Seeds 1;" in pages[1]
    assert "No results: all there is are 1 trial (data.validation is set" in pages[2] and "Seeds 2;" in pages[2]


def test_names_cannot_become_markup(kept: Path, tmp_path: Path) -> None:
    run = load([next(kept.glob("*fedper*"))])[0][0]
    run.config["run"]["name"] = "</script><b>x"
    page = build_page("x", [section_of("digits", [Group(run.label, (run,))])])
    assert "<b>x" not in page and "&lt;b&gt;x" in page and "\\u003cb>x" in page


def test_figures_are_written_twice(kept: Path, tmp_path: Path) -> None:
    figures, tables = tmp_path / "figures", tmp_path / "tables"
    assert main(["report", str(kept), "-o", str(tmp_path / "a.html"), "--figures", str(figures), "--tables", str(tables)]) == 0
    names = {p.stem for p in figures.iterdir()}
    each = ("accuracy_{}_over_rounds", "accuracy_{}_over_bytes", "clients_{}", "gains_{}")
    assert names == {"labels", "cost", *(what.format(kind) for what in each for kind in ("before", "after"))}
    assert "gain over Local, after fine-tuning (points)" in (figures / "gains_after.svg").read_text()
    assert "hyper" not in (figures / "cost.svg").read_text() and "body" in (figures / "cost.svg").read_text()
    for name in names:
        assert ElementTree.parse(figures / f"{name}.svg").getroot().tag.endswith("svg")
        with Picture.open(figures / f"{name}.png") as picture:
            assert picture.width > 600
    stems = ("comparison", "clients", "clients_each", "cost")
    assert {p.name for p in tables.iterdir()} == {f"{stem}.{kind}" for stem in stems for kind in ("md", "tex", "csv")}
    assert "worst 10 %" in (tables / "clients.md").read_text() and "client,test samples," in (tables / "clients_each.csv").read_text()


def test_mistakes_are_one_sentence(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "afile").write_text("x")
    for runs, sentence in (
        (["nowhere"], r"run 'nowhere' does not exist: give run folders, kept runs \(\.json\), or folders of them\."),
        ([str(tmp_path / "bare")], r"holds no run"),
        ([str(tmp_path / "afile")], r"'\S+/afile' is neither a run's folder nor a kept run \(\.json\)\."),
    ):
        assert main(["report", *runs, "-o", str(tmp_path / "a.html")]) == 2
        assert re.fullmatch(rf"hyperfed: .*{sentence}.*\n", capsys.readouterr().err)
    for option in ("-o", "--figures", "--tables"):
        given = tmp_path / ("bare" if option == "-o" else "afile")
        assert main(["report", str(kept), "-o", str(tmp_path / "a.html"), option, str(given)]) == 2
        assert re.fullmatch(
            rf"hyperfed: the report could not be written: '{given}': (Is a|Not a) directory\.\n|.*'{given}': File exists\.\n",
            capsys.readouterr().err,
        )


def test_a_folder_without_runs_among_others_is_named_and_left_out(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the shell gives it for ``runs/*``."""
    (tmp_path / "bare").mkdir()
    assert main(["report", str(tmp_path / "bare"), str(kept), "-o", str(tmp_path / "a.html")]) == 0
    assert re.search(r"bare' is not a run's folder", capsys.readouterr().err) and "bare" in (tmp_path / "a.html").read_text()


def test_a_page_without_charts_is_small_and_holds_its_images(tmp_path: Path) -> None:
    Picture.new("RGB", (4, 4)).save(tmp_path / "a.png")
    table = Table("Numbers", ("a", "b"), [("x", "1")])
    page = build_page("t", [Section("one", ["text", table, Image(tmp_path / "a.png", "four pixels")]), Section("two", [])])
    assert "data:image/png;base64," in page and 'alt="four pixels"' in page and '<a href="#s1">two</a>' in page and len(page) < 30_000
    with pytest.raises(UserError, match=r"image .* is not valid"):
        build_page("t", [Section("one", [Image(tmp_path / "b.png", "")])])


def test_a_folder_reads_as_what_is_kept_of_it(kept: Path, tmp_path: Path) -> None:
    [run], damaged = load([kept.parent / "runs/fedper"])
    assert not damaged
    again = load([keep(run, tmp_path)])[0][0]
    assert replace(again, folder=run.folder, config={}) == replace(run, config={})
