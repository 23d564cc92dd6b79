"""One self-contained HTML page of text, tables, images and charts: it fetches nothing, so it opens offline and can be sent or archived.

Charts are drawn by plotly.js, which goes into the page once, compressed (2 MB of text instead of 4.8) and unpacked by the browser. The
numbers behind a chart belong in a table beside it: that is what a page without scripts, or a reader who cannot see the chart, has.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyperfed.core import UserError

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Caution:
    """A paragraph that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells of text; the first of a row names it, numbers are set flush right. ``folded``: shown when its caption is clicked.

    ``text``: the cells are lists of words, set flush left and broken into lines.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False
    text: bool = False


@dataclass(frozen=True)
class Image:
    """A PNG, JPEG or SVG file; ``alt`` says in words what it shows."""

    path: Path
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Chart:
    """Traces and layout of plotly.js; ``alt`` says in words what is to be seen.

    ``log``: the axis ("x" or "y") that can be made logarithmic, and ``starts_log`` whether it starts so. ``square``: as high as wide.
    A trace's ``meta`` tells the page what the trace belongs to: ``method`` (its index in the section's legend: colour, marker, and whether
    it is shown), ``kind`` ("before" or "after" fine-tuning), ``role`` (a colour of its own), ``methods`` (one index for each point).
    """

    title: str
    alt: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    starts_log: bool = False
    square: bool = False
    note: str = ""


@dataclass(frozen=True)
class Legend:
    """Buttons that show and hide methods in all charts of the section; ``kind``: the one of before, after, both to begin with, if any."""

    methods: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what is below it, in order; sections nest."""

    heading: str
    blocks: Sequence["Block"]


Block = str | Caution | Table | Image | Chart | Legend | Section


def build_page(title: str, sections: Sequence[Section], lead: Sequence[Block] = ()) -> str:
    """The whole page as text. ``lead`` comes before the sections; a plain string is a paragraph. Everything is escaped here, once.

    Same blocks, same bytes: the page holds no date and no path. Charts of a top-level section share its :class:`Legend`.

    >>> table = Table("Accuracy", ("method", "mean %"), [("HFN", "95.1")])
    >>> page = build_page("Results", [Section("digits", ["Three seeds.", table])])
    """
    contents = "".join(f'<li><a href="#s{i}">{escape(s.heading)}</a></li>' for i, s in enumerate(sections)) if len(sections) > 1 else ""
    body = "".join(_block(b, 2) for b in lead)
    body += f'<nav aria-label="Contents"><ul>{contents}</ul></nav>' if contents else ""
    body += "".join(f'<section class="scope" id="s{i}">{_inside(s, 2)}</section>' for i, s in enumerate(sections))
    parts = files("hyperfed.report") / "page"
    style, script = ((parts / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    drawn = any(isinstance(b, Chart) for b in _all([*lead, *sections]))
    library = f'<script type="application/octet-stream" id="library">{_library()}</script>' if drawn else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="generator" content="HyperFed">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f'<header><h1>{escape(title)}</h1><button type="button" id="theme" aria-pressed="false">Dark</button></header>\n'
        f"<main>\n{body}\n</main>\n{library}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _all(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Section):
            yield from _all(block.blocks)


def _library() -> str:
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _inside(section: Section, level: int) -> str:
    heading = f"<h{level}>{escape(section.heading)}</h{level}>\n"
    return heading + "".join(_block(b, level + 1) for b in section.blocks)


def _block(block: Block, level: int) -> str:
    match block:
        case str():
            return f"<p>{escape(block)}</p>\n"
        case Caution():
            return f'<p class="warning" role="note">{escape(block.text)}</p>\n'
        case Table():
            return _table(block)
        case Image():
            return _image(block)
        case Chart():
            return _chart(block)
        case Legend():
            return _legend(block)
        case Section():
            return f"<section>{_inside(block, level)}</section>\n"


def _table(table: Table) -> str:
    style = ' class="words"' if table.text else ""
    head = "".join(f'<th scope="col"{style}>{escape(c)}</th>' for c in table.columns)
    cells = ("".join(f"<td{style}>{_cell(c)}</td>" for c in r[1:]) for r in table.rows)
    rows = "".join(f'<tr><th scope="row">{escape(r[0])}</th>{row}</tr>\n' for r, row in zip(table.rows, cells, strict=True))
    name = escape(table.caption)
    hidden = ' class="unseen"' if table.folded else ""
    grid = (
        f'<div class="wide" role="region" aria-label="{name}" tabindex="0"><table><caption{hidden}>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )
    note = f'<p class="note">{escape(table.note)}</p>\n' if table.note else ""
    return f"<details><summary>{name}</summary>{grid}{note}</details>\n" if table.folded else grid + note


def _cell(text: str) -> str:
    return escape(text).replace(" ± ", "\u00a0±\u00a0")


def _image(image: Image) -> str:
    kind = IMAGE_TYPES.get(image.path.suffix.lower())
    if kind is None or not image.path.exists():
        raise UserError(f"image {str(image.path)!r} is not valid: must be an existing file of type {', '.join(IMAGE_TYPES)}.")
    data = base64.b64encode(image.path.read_bytes()).decode()
    caption = f"<figcaption>{escape(image.caption)}</figcaption>" if image.caption else ""
    return f'<figure><img src="data:{kind};base64,{data}" alt="{escape(image.alt)}">{caption}</figure>\n'


def _chart(chart: Chart) -> str:
    spec = {k: v for k, v in asdict(chart).items() if k not in ("title", "alt", "note")}
    data = json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    log = f'<button type="button" class="log" aria-pressed="{str(chart.starts_log).lower()}">Logarithmic {chart.log} axis</button>'
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure class="chart"><figcaption><strong>{escape(chart.title)}</strong>{log if chart.log else ""}</figcaption>'
        f'<div class="plot" role="img" aria-label="{escape(chart.title)}. {escape(chart.alt)}"></div>'
        f'<script type="application/json">{data}</script>{note}</figure>\n'
    )


def _legend(legend: Legend) -> str:
    buttons = "".join(
        f'<button type="button" class="method" data-method="{i}" aria-pressed="true"><i aria-hidden="true"></i>{escape(name)}</button>'
        for i, name in enumerate(legend.methods)
    )
    every = (
        '<button type="button" class="all" aria-label="Show all methods, or none">all / none</button>' if len(legend.methods) > 4 else ""
    )
    kinds = "".join(
        f'<button type="button" class="kind" data-kind="{k}" aria-pressed="{str(k == legend.kind).lower()}">{text}</button>'
        for k, text in (("before", "before fine-tuning"), ("after", "after"), ("both", "both"))
    )
    choice = f'<div class="row" role="group" aria-label="Which accuracy the charts show">{kinds}</div>' if legend.kind else ""
    return (
        f'<div class="legend"><div class="row" role="group" aria-label="Methods shown in the charts">{every}{buttons}</div>{choice}</div>\n'
        '<noscript><p class="warning">Charts need JavaScript; the tables hold their numbers.</p></noscript>\n'
    )
