"""Personal models as files: they answer as the run's own did."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperfed.cli import main
from hyperfed.core import UserError
from hyperfed.data import load_dataset
from hyperfed.export import export, load_model
from hyperfed.report.runs import read_run
from runs import composed, small_run

RESNET = ("model=resnet", "model.blocks=1", "rounds=2")


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=hfn", "hypernet.embedding=8", *RESNET),
        ("method=fedbn", *RESNET),
        ("method=pfedsim",),
        ("method=pfedhn",),
        ("method=local",),
    ],
    ids=lambda o: o[0],
)
def test_an_exported_model_answers_as_the_run_did(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Every client's right answers on its own test data, before and after fine-tuning, are those in clients.csv; the run stays as it is."""
    experiment = small_run(tmp_path / "run", *overrides)
    dataset, clients = experiment.fed.dataset, experiment.fed.clients
    told = read_run(tmp_path / "run").detail.clients
    before = {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}
    for kind in ("before", "after"):
        paths = export(tmp_path / "run", None, tmp_path / kind, as_trained=kind == "before")
        for k, path in enumerate(paths):
            model, test = load_model(path), clients[k].test
            right = int((model.predict(dataset.images[test]) == dataset.labels[test]).sum())
            assert right == told[kind][k] == model.facts["right"] and model.facts["tests"] == told["tests"][k] == len(test)
            assert model.facts["fine_tuned"] is (kind == "after") and not model.training
    assert {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()} == before


def test_a_file_needs_no_hypernetwork(tmp_path: Path) -> None:
    """HFN's kernels are in it, phi and the embeddings are not: it is as large as the plain network."""
    small_run(tmp_path / "hfn", "method=hfn", "hypernet.embedding=8", *RESNET)
    small_run(tmp_path / "plain", *RESNET)
    (ours,), (plain,) = (export(tmp_path / name, [1], tmp_path / "models") for name in ("hfn", "plain"))
    one, other = (load_model(path).network.state_dict() for path in (ours, plain))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in other.items()}
    kernel = next(n for n, t in one.items() if t.dim() == 4 and t.shape[1] == 16)
    assert float(one[kernel].std()) > 0.01 and not torch.equal(one[kernel], other[kernel])


def test_the_command_and_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--clients", "4,2", "-o", str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["client 4", "client 2"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["run-client-2.safetensors", "run-client-4.safetensors"]


def test_a_model_is_used_without_the_rest(tmp_path: Path) -> None:
    """In a process of its own that loads neither the run nor its data, on grey images without an axis for channels."""
    small_run(tmp_path / "run")
    (path,) = export(tmp_path / "run", [3], tmp_path)
    images = load_dataset("digits").images[:5]
    np.save(tmp_path / "images.npy", images[..., 0])
    script = "import sys, numpy as np; from hyperfed.export import load_model; "
    script += "print(load_model(sys.argv[1]).predict(np.load(sys.argv[2])).tolist(), [m for m in sys.modules if m.startswith('hydra')])"
    words = [sys.executable, "-c", script, str(path), str(tmp_path / "images.npy")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert said == f"{load_model(path).predict(images).tolist()} []"


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run(tmp_path / "run")
    (path,) = export(tmp_path / "run", [0], tmp_path)
    (tmp_path / "file").touch()
    for arguments, words in (
        (["nowhere"], "hyperfed: '" + str(tmp_path / "nowhere") + "' is not a run's folder: it has no config.json."),
        (["run", "--clients", "6"], "--clients = 6 is not valid: must be from 0 to 5, or all."),
        (["run", "--clients", "one"], "--clients = 'one' is not valid: must be client numbers with commas, such as 0,3, or all."),
        (["run", "rounds=9"], "resume: rounds = 9 differs from the run's 3"),
        (["run", "-o", str(tmp_path / "file")], "file' could not be written: "),
    ):
        assert main(["export", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
        assert words in (said := capsys.readouterr().err) and said.count("\n") == 1
    whole = path.read_bytes()
    for content, words in (
        (whole[:-9], "is no model that `hyperfed export` wrote, or is damaged"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "its checksum is another"),
        (b"", "or is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            load_model(path)
    with pytest.raises(UserError, match=r"does not exist\.$"):
        load_model(tmp_path / "none")
    checkpoint = next((tmp_path / "run/checkpoints").rglob("server.safetensors"))
    with pytest.raises(UserError, match="note is missing"):
        load_model(checkpoint)


def test_images_of_another_form_are_refused(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    model = load_model(*export(tmp_path / "run", [0], tmp_path))
    for images in (np.zeros((2, 9, 8, 1), np.uint8), np.zeros((2, 8, 8, 1)), np.zeros((8, 8), np.uint8)):
        with pytest.raises(UserError, match=r"this model takes torch\.uint8 \[n, 8, 8, 1\], 0 to 255\."):
            model.predict(images)


def test_a_run_that_is_not_finished_has_none(tmp_path: Path) -> None:
    from hyperfed.run.experiment import Experiment

    experiment = Experiment(composed(tmp_path / "run"))
    experiment._round(1)
    experiment.save()
    experiment.claim.release()
    with pytest.raises(UserError, match=r"is at round 1 of 3: end it with `hyperfed run resume=.*` first\."):
        export(tmp_path / "run", None, tmp_path / "m")
    assert not (tmp_path / "m").exists()
