"""Where a setting is a number, truth values, NaN and infinity are none, whatever the setting."""

from collections.abc import Iterator
from copy import deepcopy
from math import inf, nan
from typing import Any

import pytest

from hyperfed.core import UserError
from hyperfed.main import compose_checked, composed_dict, groups
from hyperfed.methods import METHODS
from hyperfed.run.config import make_config

MAY_BE_NULL = {"local.steps", "threads", "optim.clip", "data.validation", "method.embedding", "privacy.epsilon", "engine.supernodes"}


def places(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names of all numbers in a configuration, those in lists, too, each with a function that sets it."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        name = prefix if isinstance(tree, list) else f"{prefix}.{key}".lstrip(".")
        value = tree[key]
        if isinstance(value, dict | list):
            yield from places(value, name)
        elif name in MAY_BE_NULL or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield name, lambda new, key=key: tree.__setitem__(key, new)


def refused(overrides: list[str], chosen: str) -> set[str]:
    """Check every number whose name starts with ``chosen``; returns their names."""
    plain = composed_dict(compose_checked(overrides))
    make_config(plain)
    names = [name for name, _ in places(plain)]
    for i, name in enumerate(names):
        if name.startswith("dataset."):  # what other settings are taken from, no setting itself
            continue
        for wrong in (True, False, nan, inf, -inf) if name.startswith(chosen) else ():
            broken = deepcopy(plain)
            list(places(broken))[i][1](wrong)
            with pytest.raises(UserError) as caught:
                make_config(broken)
            text = str(caught.value)
            assert text.startswith(f"{name} = {wrong!r} is not valid: ") and text.endswith(".") and "\n" not in text
    return {name for name in names if name.startswith(chosen)}


def test_of_a_run_and_the_hypernetwork() -> None:
    found = refused(["method=hfn"], "")
    assert {"optim.lr", "optim.milestones", "optim.decay_scale.head", "participation", "seed", "threads", "hypernet.pace.bias"} <= found


@pytest.mark.parametrize("group", ["method", "partition", "engine", "privacy", "model"])
def test_of_every_choice_of_a_group(group: str) -> None:
    options = [o for o in groups()[group] if group != "method" or o in METHODS]
    found = set[str]().union(*(refused([f"{group}={option}"], f"{group}.") for option in options))
    assert found & {"method.mu", "partition.alpha", "engine.quorum", "privacy.clip", "model.width"}


def test_text_that_means_no_number_is_refused_too() -> None:
    broken = composed_dict(compose_checked(["optim.weight_decay='nan'", "method=fedprox"]))
    with pytest.raises(UserError, match=r"optim\.weight_decay = nan is not valid: must be a finite number\."):
        make_config(broken)
