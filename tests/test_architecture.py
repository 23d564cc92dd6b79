"""The seams hold: who imports whom, and YAML in step with dataclasses."""

import ast
import dataclasses
from importlib.resources import files
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import hyperfed
from hyperfed.data import DATASETS, PARTITIONS
from hyperfed.defences import DEFENCES
from hyperfed.methods import METHODS
from hyperfed.models import MODELS
from hyperfed.report.runs import NAMES
from hyperfed.run.config import ENGINES

ROOT = Path(hyperfed.__file__).parent
ALLOWED = {  # package -> packages it may import
    "core": {"core"},
    "models": {"core", "models"},
    "methods": {"core", "methods", "models"},
    "data": {"core", "data"},
    "engine": {"core", "models", "methods", "data", "engine"},
    "defences": {"core", "models", "methods", "data", "engine", "defences"},
    "run": {"core", "models", "methods", "data", "engine", "defences", "run", "processes"},
    "privacy": {
        "core",
        "models",
        "methods",
        "data",
        "engine",
        "defences",
        "run",
        "privacy",
        "report",
        "main",
        "arguments",
    },  # it has commands
}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_downwards(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                assert not name.startswith(("hydra", "omegaconf")), f"{path}: {name}"
                if name.startswith("hyperfed."):
                    assert name.split(".")[1] in ALLOWED[package], f"{path}: {name}"


@pytest.mark.parametrize(("group", "registry"), [("method", METHODS), ("partition", PARTITIONS), ("privacy", DEFENCES)])
def test_every_entry_has_a_yaml_with_exactly_its_fields(group: str, registry: dict[str, type]) -> None:
    for name, cls in registry.items():
        text = (files("hyperfed.conf") / group / f"{name}.yaml").read_text()
        values = OmegaConf.to_container(OmegaConf.create(text))
        assert isinstance(values, dict)
        if "@package _global_" in text:
            values = values[group]
        fields = {f.name: f.default for f in dataclasses.fields(cls) if f.name not in ("model", "num_clients")}
        assert values.pop("name") == name
        assert set(values) == set(fields), name
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()} == fields, name


def test_every_method_has_the_name_that_papers_give_it() -> None:
    assert set(NAMES) == set(METHODS)


@pytest.mark.parametrize(("group", "registry"), [("model", MODELS), ("dataset", DATASETS), ("engine", ENGINES)])
def test_every_entry_has_a_yaml(group: str, registry: dict[str, object]) -> None:
    options = {p.name[:-5] for p in (files("hyperfed.conf") / group).iterdir() if p.name.endswith(".yaml")}
    assert options == set(registry)
