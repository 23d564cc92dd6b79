"""Personal models out of a finished run as files of their own, and back: ``hyperfed export RUN --clients 3`` and :func:`load_model`.

A file holds one client's network, its kernels generated once and for all, and what its images are normalised with: it needs neither
the run nor its data, nor a hypernetwork.
"""

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hyperfed import __version__
from hyperfed.core import Params, UserError, invalid
from hyperfed.core.files import atomic, load_tensors, save_tensors
from hyperfed.models import HyperModel, Shape, build_model
from hyperfed.models.network import tensors

EPILOG = """examples:
  hyperfed export runs/hfn-mnist-dirichlet-s1-1a2b3c --clients 3 -o models
  hyperfed export RUN --clients all --as-trained data.root=DIR
"""


class PersonalModel(nn.Module):
    """One client's network behind the normalisation of its images, at rest. ``facts``: where it comes from, and how it does.

    Its tensors are float32; a run in bf16 computed with it in bf16, so that single answers may differ from the run's.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, facts: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.facts = network, facts
        self.class_names: list[str] = facts["class_names"]
        self.register_buffer("mean", torch.tensor([255 * m for m in facts["mean"]]).view(-1, 1, 1))
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in facts["std"]]).view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, H, W, C] of 0 to 255 -> scores [n, classes], whose softmax are probabilities."""
        scores: Tensor = self.network((images.permute(0, 3, 1, 2).float() - self.mean) * self.scale)
        return scores

    @torch.no_grad()
    def predict(self, images: np.ndarray | Tensor) -> np.ndarray:
        """The class of each image, int [n]; images uint8 [n, H, W, C] (grey ones also [n, H, W]). Raises UserError for another form."""
        x = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
        size, channels = self.facts["size"], self.facts["channels"]
        if x.dim() == 3 and channels == 1:
            x = x[..., None]
        if x.dtype != torch.uint8 or tuple(x.shape[1:]) != (size, size, channels):
            raise UserError(
                f"images are {x.dtype} {list(x.shape)}; this model takes torch.uint8 [n, {size}, {size}, {channels}], 0 to 255."
            )
        return self(x.to(self.mean.device)).argmax(1).cpu().numpy()


def load_model(path: str | Path) -> PersonalModel:
    """The model in a file that ``hyperfed export`` wrote. Raises UserError where the file is none, or is damaged."""
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["note"])
        params = load_tensors(path)
        settings = dict(facts["model"])
        network = build_model(settings.pop("name"), Shape(facts["channels"], facts["size"], len(facts["class_names"])), **settings)
        module = network.module()
        for name, tensor in tensors(module):
            tensor.detach().copy_(params[name])
        return PersonalModel(module, facts)
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} does not exist.") from None
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as problem:
        why = f"{problem.args[0]} is missing" if isinstance(problem, KeyError) else str(problem)
        raise UserError(f"{str(path)!r} is no model that `hyperfed export` wrote, or is damaged: {why}.") from None


def export(run: Path, clients: Sequence[int] | None, out: Path, settings: Sequence[str] = (), as_trained: bool = False) -> list[Path]:
    """Write the models of ``clients`` (None: of all) of a finished run into ``out``, as they were scored in its last round.

    That is after fine-tuning, where the run has it and not ``as_trained``. ``settings`` may say where the data are and name a device.
    """
    from hyperfed.engine.local import LocalEngine
    from hyperfed.engine.workspace import NonFiniteLoss
    from hyperfed.main import resumed
    from hyperfed.run.config import resume_setting
    from hyperfed.run.experiment import Experiment

    if not os.access(run / "config.json", os.F_OK):  # False, too, for what is too long to be a path
        raise UserError(f"{str(run)!r} is not a run's folder: it has no config.json.")
    composed = resumed(run, settings)
    if composed["engine"]["name"] != "local":
        raise invalid("engine", composed["engine"]["name"], "local: of other runs the clients' own processes hold what is personal")
    for k in clients or ():
        if not 0 <= k < composed["num_clients"]:
            raise invalid("--clients", k, f"from 0 to {composed['num_clients'] - 1}, or all")
    experiment = Experiment(composed)
    config, engine, dataset = experiment.config, experiment.fed.engine, experiment.fed.dataset
    assert isinstance(engine, LocalEngine)
    if experiment.number < config.rounds:
        end = f"hyperfed run {shlex.quote(resume_setting(run))}"
        raise UserError(f"{str(run)!r} is at round {experiment.number} of {config.rounds}: end it with `{end}` first.")
    model, everyone = experiment.fed.model, experiment.everyone()
    tune, written = None if as_trained else experiment.finetune(config.rounds), []
    for k in range(config.num_clients) if clients is None else clients:
        down = experiment.fed.method.download(experiment.server, everyone, k)
        try:
            params = engine.deployed(k, down, config.rounds, tune)
        except NonFiniteLoss as problem:
            raise UserError(f"{problem} --as-trained takes the model before fine-tuning.") from problem
        right = engine.client(k, config.rounds, "finetune", engine.optim, 0.0).correct(params, engine.test_index[k])
        facts = {
            **{"hyperfed": __version__, "run": experiment.folder.name, "client": k, "round": experiment.number},
            **{"method": config.method["name"], "fine_tuned": tune is not None, "model": config.model, "precision": config.precision},
            **{"channels": dataset.images.shape[3], "size": dataset.images.shape[1], "class_names": list(dataset.class_names)},
            **{"mean": list(dataset.mean), "std": list(dataset.std), "tests": len(engine.test_index[k]), "right": right},
        }
        plain = model.plain(params) if isinstance(model, HyperModel) else params
        written.append(_write(out / f"{experiment.folder.name}-client-{k}.safetensors", plain, facts))
    return written


def _write(path: Path, params: Params, facts: dict[str, Any]) -> Path:
    try:
        with atomic(path) as temporary:
            save_tensors(temporary, params, checksum=True, note=json.dumps(facts))
    except OSError as problem:
        raise UserError(f"--out = {str(path.parent)!r} could not be written: {problem.strerror or problem}.") from problem
    return path


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        "hyperfed export",
        description="Clients' personal models out of a finished run, each a file of its own (hyperfed.export.load_model reads it).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="where the data are on this machine, device=")
    parser.add_argument("--clients", default="all", help="which: 3, or 0,3,5, or all (default)")
    parser.add_argument("--as-trained", action="store_true", help="before fine-tuning")
    parser.add_argument("-o", "--out", type=Path, default=Path("models"), help="where they go (default ./models)")
    given = parser.parse_intermixed_args(arguments)
    words = given.clients.split(",")
    if given.clients != "all" and not all(word.isascii() and word.isdecimal() for word in words):
        raise invalid("--clients", given.clients, "client numbers with commas, such as 0,3, or all")
    numbers = None if given.clients == "all" else [*dict.fromkeys(int(word) for word in words)]
    for path in export(given.run, numbers, given.out, given.settings, given.as_trained):
        facts = load_model(path).facts
        print(f"client {facts['client']}: {facts['right']} of its own {facts['tests']} test samples right  {path}")  # noqa: T201
    return 0
