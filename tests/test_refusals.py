"""What a run refuses once it knows its data and its model, and what becomes of training that cannot go on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperfed.core import UserError
from hyperfed.engine.workspace import DeviceClient, Images, Local, Optim, Workspace
from hyperfed.models import Shape, build_model
from hyperfed.run.experiment import Diverged, Experiment
from runs import composed, small_run


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=resnet", "local.batch_size=1"], "local.batch_size = 1 is not valid: must be >= 2 with batch norm"),
        (["model=resnet", "local.batch_size=1", "local.steps=3"], "local.batch_size = 1 is not valid"),
        (["num_clients=300", "partition=iid", "data.fraction=0.2"], "num_clients = 300 is not valid: must be small enough for some test"),
        (["num_clients=300", "partition=iid", "data.fraction=0.2"], "raise data.fraction = 0.2 or data.test_fraction"),
        (["data.validation=0.001"], "or data.validation"),
        (["finetune.scope=[embed]"], "finetune.scope = ['embed'] is not valid: must be among the model's own roles: body, head."),
        (["private_init=[embed]"], "private_init = ['embed'] is not valid: must be among the model's own roles: body, head."),
        (["finetune.scope=[head]", "optim.lr_scale.head=0"], "is not valid: must be [stats], or roles of which one at least is trained."),
        (["finetune.scope=[stats]"], "finetune.scope = ['stats'] is not valid: must be among the model's own roles: body, head."),
        (["model=resnet", "finetune.scope=[stats,head]", "optim.lr_scale.head=0"], "finetune.scope = ['stats', 'head'] is not valid"),
        (["device=cpu:3"], "device = 'cpu:3' is not valid: must be auto, cpu, cuda or cuda:N."),
        (["privacy=secagg", "participation=0.1"], "privacy=secagg needs a cohort of at least 3 clients"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(overrides: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Experiment(composed(tmp_path / "run", *overrides))
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_roles_that_the_model_has_are_taken(tmp_path: Path) -> None:
    Experiment(composed(tmp_path / "a", "finetune.scope=[head]", "private_init=[head,body]", "method=local"))
    Experiment(composed(tmp_path / "b", "local.batch_size=1"))  # no batch norm
    Experiment(composed(tmp_path / "c", "finetune.scope=[stats]", "model=resnet", "method=hfn"))


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["private_init=[head]"], "none"),
        (["private_init=[head,body]", "method=fedper"], "head"),
        (["private_init=[hyper]", "method=hfn", "model=resnet"], "stem, body, norm, stats, head, embed"),
        (["private_init=[head]", "method=hfn", "model=resnet", "hypernet.share=[head,stem]"], "body, norm, stats, embed"),
        (["private_init=[head]", "method=feddyn"], "none"),
        (["private_init=[body]", "method=pfedhn_pc"], "head"),
    ],
)
def test_initial_tensors_that_no_client_would_use_are_refused(overrides: list[str], kept: str, tmp_path: Path) -> None:
    """What comes from the server with the first message replaces whatever a client has drawn for itself."""
    with pytest.raises(UserError, match=rf"private_init = \['\w+'\] is not valid: must be among the roles a client keeps .*: {kept}\."):
        Experiment(composed(tmp_path / "run", *overrides))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["fedfomo", "pfedla"])
def test_a_client_that_keeps_its_model_may_start_with_its_own(method: str, tmp_path: Path) -> None:
    """FedFomo's state is the client's whole model, whatever travels of it."""
    keeping = ["method.keep_layers=1"] if method == "pfedla" else []
    Experiment(composed(tmp_path / "run", "private_init=[body,head]", f"method={method}", *keeping))


@pytest.mark.parametrize("field", ["run.dir", "run.root"])
def test_a_folder_that_cannot_be_made_is_named(field: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        settings = ["run.dir=null", f"{field}={place}"]
        with pytest.raises(UserError, match=rf"{field} = '{place}' is not valid: must be a folder that can be written or made"):
            Experiment(composed(tmp_path / "unused", *settings))


@pytest.mark.parametrize("steps", [None, 3])
def test_a_pass_that_serves_no_batch_is_the_last(steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one example are left out where there is batch norm: with a batch size of one there is nothing to wait for."""
    passes, shuffle = [], torch.randperm

    def counted(*args: int, **settings: torch.Generator) -> torch.Tensor:
        passes.append(args)
        assert len(passes) < 10, "it never ends"
        return shuffle(*args, **settings)

    monkeypatch.setattr(torch, "randperm", counted)
    pixels = np.zeros((5, 8, 8, 1), np.uint8)
    images = Images(pixels, np.zeros(5, np.int64), (0.5,), (0.5,), torch.device("cpu"))
    space, index = Workspace(build_model("resnet", Shape(1, 8, 3), width=2), images), torch.arange(5)
    for size, batches in ((1, 0), (4, 2 if steps is None else 3)):
        client = DeviceClient(space, 0, index, index[:0], 1, 1, 0.1, Optim(), Local(2, size, steps))
        assert len(list(client._batches(torch.Generator(), 2, steps))) == batches


def test_where_fine_tuning_breaks_a_client_is_scored_without_it(tmp_path: Path) -> None:
    """The run is finished all the same, and again after a stop between the last round and its evaluation."""
    settings = ("rounds=1", "finetune.lr=1e30", "on_nan=skip")
    small_run(tmp_path, *settings)
    metrics = tmp_path / "metrics.jsonl"
    lines = [json.loads(text) for text in metrics.read_text().splitlines()]
    notes = [line["message"] for line in lines if line.get("event") == "skipped"]
    assert len(notes) == 6 and all(note.startswith("scored without fine-tuning: the loss of client") for note in notes)
    assert lines[-1]["after"] == lines[-1]["before"]
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    small_run(tmp_path, *settings)
    assert json.loads(metrics.read_text().splitlines()[-1])["after"] == lines[-1]["after"]


def test_where_fine_tuning_breaks_the_advice_is_about_fine_tuning(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"at fine-tuning step \d \(learning rate 1e\+30\)\. Use a smaller finetune\.lr, .*=skip to score"):
        small_run(tmp_path / "a", "rounds=1", "finetune.lr=1e30")
    with pytest.raises(Diverged, match=r"at local step \d+ \(learning rate 1e\+30\)\. Use a smaller optim\.lr, .*=skip to leave"):
        small_run(tmp_path / "b", "rounds=1", "optim.lr=1e30")
