"""The apps that Flower loads, what a node needs to know, and a client's own data."""

import os
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict
from flwr.common.config import flatten_dict, parse_config_args

from flowers import SMALL, assert_same, experiment, results
from hyperfed.core import UserError
from hyperfed.core.files import lock
from hyperfed.data import load_dataset, load_folder
from hyperfed.engine.flower.codec import Refused
from hyperfed.engine.flower.grid import InProcessGrid
from hyperfed.flower_apps import FAILURE, client_app, compose_run, overrides_of, server_app
from hyperfed.run.config import run_folder
from hyperfed.run.experiment import Experiment
from hyperfed.run.flower import deployed_side, hosted_clients

CONFIG = {"method": "fedper", "rounds": 2, "participation": 1.0, "data.fraction": 0.2, "optim.nesterov": True, "run.dir": ""}


def context(run_config: dict[str, object]) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)


def test_run_config_keys_are_hydras() -> None:
    config = {**CONFIG, "overrides": "model=mlp 'private_init=[head]'"}
    assert overrides_of(config)[0] == "engine=flower"
    made = compose_run(config)
    assert made["method"]["name"] == "fedper" and made["model"]["name"] == "mlp" and made["private_init"] == ["head"]
    assert made["rounds"] == 2 and made["data"]["fraction"] == 0.2 and made["optim"]["nesterov"] is True
    assert Path(made["run"]["root"]).is_absolute()


def test_mistakes_in_the_run_config_are_one_sentence() -> None:
    for wrong, named in (
        ({"method": "fedprr"}, "fedprr"),
        ({"engine": "local"}, "engine"),
        ({"run.dir": "here"}, "absolute"),
        ({"roundz": 1}, "roundz"),
        ({"overrides": "method='hfn"}, 'overrides = "method=\'hfn" is not valid: must be settings as on a command line'),
    ):
        with pytest.raises(UserError, match=named) as mistake:
            compose_run(wrong)
        assert "\n" not in str(mistake.value)


def test_flower_takes_the_commands_of_the_apps_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `flwr run` reads them: one file, or settings that the app knows, not both."""
    monkeypatch.chdir(Path(__file__).parents[1] / "flower_app")
    known = flatten_dict(tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"])
    commands = [shlex.split(line) for line in Path("README.md").read_text(encoding="utf-8").splitlines() if line.startswith("flwr run ")]
    assert len(commands) > 3
    for words in commands:
        config = parse_config_args([words[i + 1] for i, word in enumerate(words) if word == "--run-config"])
        assert config and config.keys() <= known.keys()
        compose_run(config)


@pytest.mark.parametrize("name", ["a,b", "run (1)", "Müller", "a=b", "it's", "a&b", "${x}", "{c}", "[d]", "~e", "a#b", "with space"])
def test_any_folder_can_be_a_runs(name: str) -> None:
    """What Hydra's grammar takes for its own in a value is part of the path, and of no other run's."""
    assert run_folder(compose_run({"run.dir": f"/srv/{name}", "overrides": "method=hfn"})) == Path("/srv") / name
    assert Path(compose_run({"overrides": "method=hfn"})["run"]["root"]).is_absolute()


def test_server_app_and_client_app_play_a_whole_run(tmp_path: Path) -> None:
    """Both apps as Flower calls them; the bits are the local engine's."""
    run_config = {"overrides": " ".join([*SMALL, "method=fedper", "engine.backend=grid"]), "run.dir": str(tmp_path / "run")}
    server_app(grid=InProcessGrid(client_app, 4, run_config), context=context(run_config))
    local = experiment(tmp_path / "local", "local", "method=fedper")
    local.run()
    assert_same(results(local), results(Experiment(compose_run(run_config))))
    assert not (tmp_path / "run" / FAILURE).exists()


def test_a_failed_run_leaves_its_reason_where_the_command_finds_it(tmp_path: Path) -> None:
    run_config = {"overrides": " ".join([*SMALL, "model=mlp", "optim.lr=1e30"]), "run.dir": str(tmp_path / "run")}
    with pytest.raises(UserError):
        server_app(grid=InProcessGrid(client_app, 8, run_config), context=context(run_config))
    assert "is not finite in round 1" in (tmp_path / "run" / FAILURE).read_text()


def test_a_run_whose_folder_is_in_use_leaves_nothing_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    descriptor = lock(folder / ".run.lock")
    assert descriptor is not None
    run_config = {"overrides": " ".join([*SMALL, "model=mlp"]), "run.dir": str(folder)}
    with pytest.raises(UserError, match="is in use by another process"):
        server_app(grid=InProcessGrid(client_app, 8, run_config), context=context(run_config))
    os.close(descriptor)
    assert not (folder / FAILURE).exists()


def test_a_deployed_node_keeps_its_states_by_experiment(tmp_path: Path) -> None:
    """Two nodes with folders of their own; each holds its clients' states and no others, and the run agrees with the local engine."""
    run_config = {"overrides": " ".join([*SMALL, "method=fedper", "engine.backend=deployment"]), "run.dir": str(tmp_path / "run")}
    grid = InProcessGrid(client_app, 2, run_config)
    for i, (node, clients) in enumerate(zip(grid.contexts.values(), ("0 1 2 3", "4,5,6,7"), strict=True)):
        node.node_config.update({"clients": clients, "state-dir": str(tmp_path / f"state-{i}")})
    server_app(grid=grid, context=context(run_config))
    name = __import__("json").loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]
    held = [sorted({int(p.name[:6]) for p in (tmp_path / f"state-{i}" / name).glob("*.safetensors")}) for i in (0, 1)]
    local = experiment(tmp_path / "local", "local", "method=fedper")
    local.run()
    assert held == [[k for k in sorted(local.fed.engine.store.flush()) if k in some] for some in (range(4), range(4, 8))]
    assert (tmp_path / "run" / "clients.csv").read_text() == (local.folder / "clients.csv").read_text()
    assert not (tmp_path / "run" / "states").exists()


def test_a_client_can_bring_its_own_images(tmp_path: Path) -> None:
    """Client 1's folder holds 30 images: it reports 24 for training (a fifth is held out) and takes part like the others."""
    digits = load_dataset("digits")
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "images.npy", digits.images[:30])
    np.save(folder / "labels.npy", digits.labels[:30])
    run_config = {"overrides": " ".join([*SMALL, "num_clients=2", "model=mlp", "participation=1"]), "run.dir": str(tmp_path / "run")}
    grid = InProcessGrid(client_app, 2, run_config)
    first, second = grid.contexts.values()
    first.node_config.update({"clients": "0", "state-dir": str(tmp_path / "state-0")})
    second.node_config.update({"clients": "1", "state-dir": str(tmp_path / "state-1"), "data": str(folder)})
    run = Experiment(compose_run({**run_config, "overrides": run_config["overrides"]}), grid=grid)
    assert run.fed.engine.examples[1] == 24
    run.run()
    assert "3,1," in (run.folder / "clients.csv").read_text()


@pytest.mark.parametrize("labels", [np.linspace(0.9, 8.9, 10), np.arange(10)[:, None], np.arange(10) > 4])
def test_own_labels_are_integers_one_for_each_image(labels: np.ndarray, tmp_path: Path) -> None:
    digits = load_dataset("digits")
    np.save(tmp_path / "images.npy", digits.images[:10])
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(UserError, match=r"labels of shape \[10.*\]: they must be integers, \[n\]"):
        load_folder(tmp_path, digits)


def test_a_client_does_not_follow_the_server_out_of_its_folder(tmp_path: Path) -> None:
    """The experiment's name becomes a folder's below --state-dir: identity and a number, nothing else."""
    made = compose_run({"overrides": " ".join([*SMALL, "model=mlp", "engine.backend=deployment"]), "run.dir": "/srv/run"})
    node = Context(run_id=1, node_id=1, node_config={"state-dir": str(tmp_path), "clients": "0"}, state=RecordDict(), run_config={})
    side = deployed_side(made, node)
    side.check_experiment(f"{side.identity}-0123abcd")
    for evil in ("-/../../../victim", "-0123abcd/../..", "-..", "-0123abcd\n", "/x"):
        with pytest.raises(Refused, match="the server runs experiment"):
            side.check_experiment(side.identity + evil)


def test_own_images_are_checked(tmp_path: Path) -> None:
    from PIL import Image

    digits = load_dataset("digits")
    for name in ("3", "5"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(digits.images[i, :, :, 0]).save(tmp_path / name / f"{i}.png")
    assert load_folder(tmp_path, digits).labels.tolist() == [3, 3, 5, 5]
    assert np.array_equal(load_folder(tmp_path, digits).images[:2], digits.images[:2])
    (tmp_path / "horse").mkdir()
    with pytest.raises(UserError, match="'horse' is not a class"):
        load_folder(tmp_path, digits)
    (tmp_path / "horse").rmdir()
    Image.new("L", (9, 9)).save(tmp_path / "5" / "big.png")
    with pytest.raises(UserError, match=r"big\.png' has shape \[9, 9, 1\], expected \[8, 8, 1\]"):
        load_folder(tmp_path, digits)
    with pytest.raises(UserError, match="is not a folder"):
        load_folder(tmp_path / "nowhere", digits)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds neither"):
        load_folder(empty, digits)


def test_which_clients_a_node_hosts() -> None:
    assert hosted_clients({"clients": "3, 0"}, 8) == [0, 3]
    assert hosted_clients({"partition-id": 1, "num-partitions": 3}, 8) == [1, 4, 7]
    for wrong in ("8", "x", "", "-1", "0-3"):
        with pytest.raises(UserError, match="clients = "):
            hosted_clients({"clients": wrong}, 8)
