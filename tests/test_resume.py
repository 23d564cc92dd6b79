"""Going on with a run: what one types, and what its folder must hold."""

import shlex
from pathlib import Path

import pytest

from hyperfed.main import compose_checked
from hyperfed.run.config import resume_setting

AWKWARD = ("null", "NaN", "12", "1e3", "-a", "a b", "a,b", "a=b", "[x]", "{a:b}", "glob(*)")
LETTERS = ("~/x", "a;b#c", "ü/é😀", "\u212a", " a ", "x\ny")
QUOTED = ("it's", 'say "x"', "a\\", "a\\\\'b", "${x}", "a\\${x}'", "${oc.env:HOME}", "$HOME", "a$", "\\$", "'", "a'\\")


@pytest.mark.parametrize("path", [*AWKWARD, *LETTERS, *QUOTED])
def test_any_folder_can_be_typed_again(path: str) -> None:
    (word,) = shlex.split(shlex.quote(resume_setting(Path(path))))
    assert compose_checked([word]).resume == path


@pytest.mark.parametrize("path", ["runs/hfn-mnist-dirichlet-s1-1a2b3c", "/srv/run_1.b", "a"])
def test_most_need_no_quotes(path: str) -> None:
    assert shlex.quote(resume_setting(Path(path))) == f"resume={path}" == f"resume={compose_checked([f'resume={path}']).resume}"
