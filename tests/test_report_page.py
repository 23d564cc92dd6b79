"""The report's page in a real browser: it loads without an error or a request, and its controls do what they say."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browsing import Opened, drawn, opened
from hyperfed.evidence.plans import TABLE2
from hyperfed.report.html import Chart, Legend, Section, build_page
from hyperfed.report.html_charts import ROLES, cost_chart
from hyperfed.report.html_report import report, section_of
from hyperfed.report.runs import Detail, RunFiles, keep, read_run
from hyperfed.report.seeds import Group
from made_runs import made
from runs import small_run
from sight import SIGHT, XYZ, apart, lights

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")
FLAGS = ["--headless=new", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]

CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const ground = (e) => {
    const own = getComputedStyle(e).backgroundColor;
    return own.startsWith('rgba(0, 0, 0, 0') && e.parentElement ? ground(e.parentElement) : own;
  };
  const written = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const out = [];
  for (const e of document.querySelectorAll('body *:not(script):not(style):not(noscript)')) {
    if (!written(e) || !e.getClientRects().length || e.closest('i')) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(ground(e.closest('svg') ? e.closest('.plot') : e))];
    out.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.textContent.slice(0, 30)]);
  }
  return out;
}"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of two seeds on groups of clients, and one more on other data."""
    folder = tmp_path_factory.mktemp("page")
    grouped = ("partition=groups", "partition.num_groups=2", "eval.finetune=always")
    runs = {f"local-{seed}": ("method=local", f"seed={seed}", *grouped) for seed in (1, 2)}
    runs |= {f"hfn-{seed}": ("method=hfn", "model=resnet", f"seed={seed}", *grouped) for seed in (1, 2)}
    for name, overrides in {**runs, "other": ("method=fedper", "partition=iid")}.items():
        small_run(folder / "runs" / name, "rounds=2", "eval.every=1", *overrides)
    report([folder / "runs"], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def hfn(html: Path) -> RunFiles:
    """A run that has everything a report can show."""
    return read_run(html.parent / "runs" / "hfn-1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desktop(browser: Any, html: Path) -> Opened:
    return opened(browser, html, viewport={"width": 1200, "height": 900}, color_scheme="light")


def test_it_loads_without_an_error_or_a_request(desktop: Opened, html: Path) -> None:
    assert desktop.said == [] and desktop.asked == [html.as_uri()]


def test_every_chart_is_drawn_and_valid(desktop: Opened) -> None:
    shapes = desktop.page.evaluate(
        """() => [...document.querySelectorAll('.plot')].map((p) => p.querySelectorAll('.trace, .hm image, .point').length)"""
    )
    assert len(shapes) == 7 + 5 and all(shapes)  # a single FedPer run has neither gains over Local nor generated kernels
    complaints = desktop.page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap((p) => Plotly.validate(p.data, p.layout) ?? [])
        .filter((c) => !['unused', 'invisible', 'dynamic'].includes(c.code)).map((c) => `${c.code}: ${c.msg}`)"""
    )
    assert complaints == []


def test_a_method_is_hidden_in_all_charts_of_its_section_by_keyboard(desktop: Opened) -> None:
    page = desktop.page
    charts = ("Accuracy over rounds", "Accuracy over payload", "Accuracy of every client")
    assert all("HFN" in drawn(page, chart) for chart in charts)
    button = page.locator("#s0 .method", has_text="HFN")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert not any("HFN" in drawn(page, chart) for chart in charts) and all("Local" in drawn(page, chart) for chart in charts)
    page.keyboard.press("Space")
    assert all("HFN" in drawn(page, chart) for chart in charts)


def test_many_methods_go_and_come_at_once_and_have_no_bands(browser: Any, tmp_path: Path) -> None:
    """Ten lines with a band each: bands only for eight and fewer."""
    names = [f"method {i}" for i in range(10)]
    line = {"type": "scatter", "x": [1, 2], "y": [3, 4], "mode": "lines"}
    band = {"type": "scatter", "x": [1, 2, 2, 1], "y": [4, 5, 3, 2], "mode": "none", "fill": "toself"}
    traces = [{**t, "name": name, "meta": {"method": i}} for i, name in enumerate(names) for t in (band, line)]
    path = tmp_path / "many.html"
    path.write_text(build_page("Many", [Section("one", [Legend(names), Chart("Lines", "Ten lines", traces)])]), encoding="utf-8")
    page = opened(browser, path).page
    shown = """() => ['none', 'lines'].map((mode) => document.querySelector('.plot')._fullData
        .filter((t) => t.visible === true && t.mode === mode).length)"""
    assert page.evaluate(shown) == [0, 10]
    page.locator(".method").nth(3).click()
    page.locator(".method").nth(4).click()
    assert page.evaluate(shown) == [8, 8]
    page.locator(".all").click()
    assert page.evaluate(shown) == [0, 10]
    page.locator(".all").click()
    assert page.evaluate(shown) == [0, 0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["before", "after", "both"])
def test_fourteen_methods_are_told_apart_by_every_sight(scheme: str, kind: str, browser: Any, tmp_path: Path) -> None:
    names = [f"method {i}" for i in range(14)]
    line = {"type": "scatter", "x": [1, 2], "y": [3, 4], "mode": "lines"}
    traces = [{**line, "name": n, "meta": {"method": i, "kind": k}} for i, n in enumerate(names) for k in ("before", "after")]
    path = tmp_path / "many.html"
    path.write_text(build_page("Many", [Section("one", [Legend(names, kind), Chart("Lines", "Lines", traces)])]), encoding="utf-8")
    lines, paper = opened(browser, path, color_scheme=scheme).page.evaluate(
        """() => [document.querySelector('.plot')._fullData.filter((t) => t.visible === true)
        .map((t) => [t.meta, t.line.color, t.line.dash]), getComputedStyle(document.body).backgroundColor]"""
    )
    for one in {meta["kind"] for meta, _, _ in lines}:
        colours, dashes = zip(*[(c, d) for meta, c, d in lines if meta["kind"] == one], strict=True)
        assert len(colours) == 14
        same = (np.array(dashes)[:, None] == np.array(dashes)[None, :]) & ~np.eye(14, dtype=bool)
        assert min(apart(list(colours), sight)[same].min() for sight in SIGHT) >= 18
        bright = lights([*colours, paper]) @ XYZ[1] + 0.05
        assert (np.maximum(bright[:-1], bright[-1]) / np.minimum(bright[:-1], bright[-1])).min() >= 3


def test_before_after_and_both(desktop: Opened) -> None:
    page = desktop.page
    assert drawn(page, "Accuracy over rounds") == ["HFN", "Local"]
    page.locator("#s0 .kind", has_text="both").click()
    assert sorted(drawn(page, "Accuracy over rounds")) == ["HFN", "HFN", "Local", "Local"]
    page.locator("#s0 .kind", has_text="before").click()
    assert drawn(page, "Accuracy over rounds") == ["HFN", "Local"]


def test_clients_are_shown_after_fine_tuning_until_a_button_is_pressed(browser: Any, hfn: RunFiles, tmp_path: Path) -> None:
    """Fine-tuned at the last round only: the curves over rounds are of both kinds, those of the clients of one."""
    *early, last = hfn.evaluations
    run = replace(hfn, evaluations=[*({**e, "after": None} for e in early), last])
    path = tmp_path / "clients.html"
    path.write_text(build_page("x", [section_of("digits", [Group("HFN", (run,))])]), encoding="utf-8")
    page = opened(browser, path).page
    assert drawn(page, "Accuracy over rounds") == ["HFN"] * 2 and drawn(page, "Accuracy of every client") == ["HFN"]
    kinds = page.evaluate(
        """() => [...document.querySelectorAll('.chart')].find((c) => c.textContent.includes('Accuracy of every client'))
        .querySelector('.plot')._fullData.filter((t) => t.visible === true).map((t) => t.meta.kind)"""
    )
    assert kinds == ["after"]
    page.locator(".kind", has_text="both").click()
    assert drawn(page, "Accuracy of every client") == ["HFN"] * 2


def test_the_axis_becomes_logarithmic_and_back(desktop: Opened) -> None:
    page = desktop.page
    kind = """() => document.querySelector('#s0 .plot')._fullLayout.xaxis.type"""
    button = page.locator("#s0 .log").first
    assert page.evaluate(kind) == "linear"
    button.click()
    assert page.evaluate(kind) == "log" and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert page.evaluate(kind) == "linear"


def test_hovering_says_the_value(desktop: Opened) -> None:
    page = desktop.page
    plot = page.locator("#s0 .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.locator("#s0 .hoverlayer text", has_text="HFN").first.wait_for(timeout=5_000)
    assert "%" in page.locator("#s0 .hoverlayer").first.text_content()


def test_dark_mode_follows_the_system_and_the_button(desktop: Opened, browser: Any, html: Path) -> None:
    shades = """() => [getComputedStyle(document.body).backgroundColor, document.querySelector('.plot')._fullLayout.font.color]"""
    light = desktop.page.evaluate(shades)
    desktop.page.locator("#theme").click()
    dark = desktop.page.evaluate(shades)
    desktop.page.locator("#theme").click()
    assert desktop.page.evaluate(shades) == light and light[0] != dark[0] and light[1] != dark[1]
    system = opened(browser, html, color_scheme="dark")
    assert system.page.evaluate(shades) == dark and system.page.locator("#theme").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str, browser: Any, html: Path) -> None:
    measured = opened(browser, html, color_scheme=scheme).page.evaluate(CONTRAST)
    assert len(measured) > 200 and [m for m in measured if m[0] < 4.5] == []


def test_nothing_overflows_on_a_phone(browser: Any, html: Path) -> None:
    phone = opened(browser, html, viewport={"width": 390, "height": 844}, has_touch=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    outside = """() => [...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide, .row')
      && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + e.className)"""
    assert phone.page.evaluate(outside) == []
    assert phone.said == []


def test_a_turned_phone_keeps_legend_and_titles_clear(browser: Any, hfn: RunFiles, tmp_path: Path) -> None:
    """The cost chart drawn wide, then narrow, then wide: its legend stays above the first bar, its title within the page."""
    run = replace(hfn, detail=Detail(roles=dict.fromkeys(ROLES, 9)))
    chart = cost_chart([Group(f"a method with a name {i}", (run,)) for i in range(9)])
    path = tmp_path / "cost.html"
    path.write_text(build_page("Cost", [Section("one", [chart])]), encoding="utf-8")
    page = opened(browser, path, viewport={"width": 1200, "height": 900}).page
    room = """() => {
      const chart = document.querySelector('.chart');
      const [bars, [box], [title]] = ['.bars .point', '.legend .bg', '.xtitle'].map(
        (what) => [...chart.querySelectorAll(what)].map((e) => e.getBoundingClientRect()));
      return [Math.min(...bars.map((b) => b.top).filter((y) => y)) - box.bottom, innerWidth - title.right];
    }"""
    for width in (1200, 390, 1200):
        page.set_viewport_size({"width": width, "height": 844})
        for _ in range(100):
            page.wait_for_timeout(50)
            if page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p._fullLayout.width === p.clientWidth)"):
                break
        assert min(page.evaluate(room)) >= 0


def test_print_fits_the_paper_and_is_light(browser: Any, html: Path) -> None:
    page = opened(browser, html, color_scheme="dark", viewport={"width": 1400, "height": 900}).page
    page.evaluate(
        """() => addEventListener('beforeprint', () => { window.printed = [...document.querySelectorAll('.plot')].map(
        (p) => [p._fullLayout.width, p._fullLayout.font.color]); })"""
    )
    assert page.pdf(format="A4", prefer_css_page_size=True).startswith(b"%PDF")
    printed = page.evaluate("window.printed")
    assert printed and all(width <= 688 for width, _ in printed) and {ink for _, ink in printed} == {"rgb(29, 35, 41)"}
    assert page.evaluate("document.querySelector('.plot')._fullLayout.width") > 1000


def test_tables_of_fourteen_methods_fit_the_paper(browser: Any, tmp_path: Path) -> None:
    """A4 less its margins is 688 px wide; one table that is wider shrinks the whole page."""
    for method in TABLE2.values():
        for seed in (1, 2):
            model = "model=resnet" if method == "hfn" else "model=mlp"
            run = made(tmp_path, seed, [7, 9, 8, 5 + seed], f"method={method}", model, "dataset=cifar10")
            keep(replace(run, folder=tmp_path / f"{method}{seed}"), tmp_path / "kept")
    report([tmp_path / "kept"], tmp_path / "report.html")
    page = opened(browser, tmp_path / "report.html", viewport={"width": 688, "height": 900}).page
    page.emulate_media(media="print")
    widths = page.evaluate("() => [...document.querySelectorAll('.wide table')].map((t) => t.scrollWidth)")
    shown = [width for width in widths if width]
    assert len(shown) >= 3 and max(shown) <= 688
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1200, "height": 900})
    settings = (
        """() => [...document.querySelectorAll('.wide table')].find((t) => t.textContent.includes('Settings in which')).scrollWidth"""
    )
    assert page.evaluate(settings) <= 1168  # the window less its margins


def test_a_browser_without_decompression_is_told_and_has_the_tables(browser: Any, html: Path) -> None:
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(html.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    told = page.locator(".chart p.warning", has_text="the tables hold its numbers")
    assert told.count() == page.locator(".chart").count() == 7 + 5 and page.locator("table").count() > 7


def test_a_browser_without_light_dark_gets_the_light_page(browser: Any, html: Path, tmp_path: Path) -> None:
    """Chromium knows the function, so here it has a name that it does not know."""
    old = tmp_path / "old.html"
    old.write_text(html.read_text(encoding="utf-8").replace("light-dark(", "unknown-function("), encoding="utf-8")
    page = opened(browser, old, color_scheme="dark").page
    colours = page.evaluate("() => [...document.querySelectorAll('.plot .lines .js-line')].map((l) => l.style.stroke)")
    assert len({*colours}) > 1 and "rgb(2, 112, 177)" in colours
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
