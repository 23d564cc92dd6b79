"""What README and docs show is what the store says: ``make docs`` would change nothing."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hyperfed.evidence import figures

ROOT = Path(__file__).parent.parent
SLOW = "properties"  # every method's own functions, run for 40 seconds: test_every_method has them


@pytest.fixture(scope="module")
def generate() -> Any:
    """docs/generate.py, which draws nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs"))
        import generate

        patch.setattr(figures, "canvas", lambda columns, size, draw, path, rows=1: path)
        for name in ("plot_accuracy", "plot_groups"):
            patch.setattr(generate, name, lambda *given, **named: None)
        yield generate
    sys.modules.pop("generate")


@pytest.mark.parametrize(
    "page", ["README.md", "docs/hfn.md", "docs/methods/README.md", "docs/evidence.md", "docs/privacy.md", "docs/defences.md"]
)
def test_every_generated_block_is_what_its_runs_say(page: str, generate: Any) -> None:
    assert page in generate.PAGES
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, shown in re.findall(r"<!-- generated:(\w+) -->\n\n(.*?)\n<!-- /generated -->", text, flags=re.DOTALL):
        if name != SLOW:
            assert shown == generate.BLOCKS[name](), f"{page}, block {name}: run `make docs`"


def test_every_block_has_a_page(generate: Any) -> None:
    texts = "".join((ROOT / page).read_text(encoding="utf-8") for page in generate.PAGES)
    assert {*re.findall(r"<!-- generated:(\w+) -->", texts)} == {*generate.BLOCKS}
