"""Figure 4 as an experiment: which attacker recovers which image from which method's message."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperfed.core import Method, Model
from hyperfed.core.seeds import derive_seed
from hyperfed.data import Dataset
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.models import Shape
from hyperfed.privacy.dlg import Recovered, dlg, idlg
from hyperfed.privacy.hull import unmask
from hyperfed.privacy.inverting import invert_gradients
from hyperfed.privacy.metrics import Quality, floors, paired, quality
from hyperfed.privacy.networks import hyper_lenet, lenet, stem_maps
from hyperfed.privacy.observer import NotApplicable, Observation, noisy, single, threat
from hyperfed.privacy.record import Recording, record
from hyperfed.privacy.search import Budget
from hyperfed.privacy.structured import structured

Attack = Callable[[Observation, Budget, int], Recovered]
ATTACKS: dict[str, Attack] = {"dlg": dlg, "idlg": idlg, "inverting": invert_gradients, "structured": structured}


class Case(NamedTuple):
    """A row: who attacks which message how. ``variant``: the plain network, or what of it HFN generates."""

    title: str
    method: str
    variant: str
    attack: str
    threat: str

    @property
    def role(self) -> str:
        """What the row is a control for: attacks that fail are believed only beside the three controls."""
        level = self.threat.partition("+")[0]
        if self.method == "fedavg" and self.attack in ("dlg", "inverting"):
            return "full gradient"
        if self.method == "fedper" and level == "naive":
            return "head kept"
        return f"oracle {self.variant}" if level == "oracle" else ""


Networks = Callable[[Case, Shape, "Setting"], Model]
"""The network of a row's method: plain, or over HFN."""


def lenets(case: Case, shape: Shape, setting: "Setting") -> Model:
    """The LeNet of DLG."""
    if case.variant == "plain":
        return lenet(shape, setting.start)
    return hyper_lenet(shape, setting.embedding, case.variant, setting.start)


CASES = (
    Case("FedAvg: DLG", "fedavg", "plain", "dlg", "naive"),
    Case("FedAvg: iDLG", "fedavg", "plain", "idlg", "naive"),
    Case("FedPer: DLG, head guessed", "fedper", "plain", "dlg", "naive"),
    Case("FedPer: structured, no secret", "fedper", "plain", "structured", "adaptive"),
    Case("HFN: DLG, rest guessed", "hfn", "all", "dlg", "naive"),
    Case("HFN: iDLG, label granted", "hfn", "all", "idlg", "naive+labels"),
    Case("HFN: structured, no secret", "hfn", "all", "structured", "adaptive"),
    Case("HFN: DLG, oracle", "hfn", "all", "dlg", "oracle"),
    Case("HFN, private stem: DLG, rest guessed", "hfn", "stem", "dlg", "naive"),
    Case("HFN, private stem: structured, no secret", "hfn", "stem", "structured", "adaptive"),
    Case("HFN, private stem: structured, stem known", "hfn", "stem", "structured", "adaptive+stem"),
    Case("HFN, private stem: DLG, oracle", "hfn", "stem", "dlg", "oracle"),
)


@dataclass(frozen=True)
class Setting:
    """What all rows of a figure share: network and its start, client's training and noise (share of its message's norm), attacker's budget.

    ``single``: attack in float32.
    """

    budget: Budget
    embedding: int = 64
    start: str = "dlg"
    batch: int = 1
    steps: int = 1
    noise: float = 0.0
    optim: Optim = Optim()
    networks: Networks = lenets
    single: bool = False


class Attempt(NamedTuple):
    """One attack on one message: a line of the CSV. ``failed`` counts restarts that ended in NaN."""

    dataset: str
    image: int
    label: int
    seed: int
    row: str
    method: str
    variant: str
    attack: str
    threat: str
    psnr: float
    psnr_affine: float
    ssim: float
    label_right: bool | None
    embedding_error: float | None
    feature_correlation: float | None
    objective: float
    evals: int
    failed: int
    cpu_seconds: float
    status: str


def shape_of(dataset: Dataset) -> Shape:
    """What a network must fit."""
    return Shape(dataset.images.shape[3], dataset.images.shape[1], dataset.num_classes)


def make_method(case: Case, shape: Shape, setting: Setting) -> Method[Any, Any, Any, Any]:
    """The real method over the setting's network. HFN is FedAvg over a hypernetwork."""
    name = case.method if case.variant == "plain" else "fedavg"
    return METHODS[name](setting.networks(case, shape, setting), 1)


@dataclass(frozen=True)
class Bench:
    """The images ``ids`` of one data set held by one client, whose messages are recorded once for each method."""

    dataset: Dataset
    ids: tuple[int, ...]
    seed: int
    setting: Setting

    @cached_property
    def recordings(self) -> dict[tuple[str, str], Recording]:
        """By method and variant."""
        return {}

    def recording(self, case: Case) -> Recording:
        """The client's round under the method of ``case``."""
        key = case.method, case.variant
        if key not in self.recordings:
            s, rows = self.setting, list(self.ids)
            method = make_method(case, shape_of(self.dataset), s)
            local = Local(batch_size=len(rows), steps=s.steps)
            images, labels = np.stack([self.dataset.images[i] for i in rows]), np.asarray(self.dataset.labels)[rows]
            self.recordings[key] = record(method, images, labels, optim=s.optim, local=local, seed=derive_seed(self.seed, "client", *rows))
        return self.recordings[key]

    def attack(self, case: Case) -> tuple[list[Attempt], Tensor | None]:
        """One line for each image of the batch, and the recovered images [B, channels, size, size]."""
        played = self.recording(case)
        seen = unmask(noisy(played.seen_by(threat(case.threat)), self.setting.noise, self.seed))
        seen = single(seen) if self.setting.single else seen
        try:
            got = ATTACKS[case.attack](seen, self.setting.budget, derive_seed(self.seed, "attacker", *self.ids))
            status = "nan" if got.images is None else "ok"
        except NotApplicable:
            got, status = Recovered(None, None, float("nan"), 0, 0, 0.0), "not applicable"
        images = None if got.images is None else paired(got.images, played.images)
        nan = float("nan")
        out = []
        for i, (original, label) in enumerate(zip(played.images, played.labels.tolist(), strict=True)):
            q = Quality(nan, nan, nan) if images is None else quality(images[i], original)
            right = None if got.labels is None or len(self.ids) > 1 or "labels" in case.threat else int(got.labels[0]) == label
            known = (embedding_error(got, played), feature_correlation(got, played, i))
            cost = (got.objective, got.evals, got.failed, got.cpu_seconds, status)
            out.append(Attempt._make((self.dataset.name, self.ids[i], label, self.seed, *case, *q, right, *known, *cost)))
        return out, images


def embedding_error(got: Recovered, played: Recording) -> float | None:
    """The largest relative error of the recovered embeddings."""
    if got.embeddings is None:
        return None
    v = played.private["embed.v"]
    return float(((got.embeddings - v).norm(dim=1) / v.norm(dim=1)).max())


def feature_correlation(got: Recovered, played: Recording, image: int) -> float | None:
    """How well the maps of a private first convolution are recovered: mean over channels of the correlation with the true ones."""
    if got.features is None or len(got.features) > 1:
        return None
    private = {n.removeprefix("net."): t for n, t in played.private.items()}
    true = stem_maps(played.images[image : image + 1], private)
    a, b = (t.flatten(2)[0] - t.flatten(2)[0].mean(1, keepdim=True) for t in (got.features, true))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


def choose(dataset: Dataset, count: int) -> list[int]:
    """Images of the figure: drawn once for each data set, whatever the scale, so that a larger figure holds the smaller one's."""
    order = np.random.default_rng(derive_seed(0, "figure 4")).permutation(len(dataset.labels))
    return [int(i) for i in order[:count]]


def play(
    dataset: Dataset, images: int, seeds: int, setting: Setting, cases: tuple[Case, ...] = CASES
) -> Iterator[tuple[Attempt, Tensor | None]]:
    """Every case on every image and seed, one message of ``setting.batch`` images at a time."""
    ids = choose(dataset, images)
    groups = [tuple(ids[i : i + setting.batch]) for i in range(0, images, setting.batch)]
    for seed in range(seeds):
        for group in groups:
            bench = Bench(dataset, group, seed, setting)
            for case in cases:
                lines, found = bench.attack(case)
                for i, line in enumerate(lines):
                    yield line, None if found is None else found[i]


def baseline(dataset: Dataset, images: int) -> dict[str, float]:
    """Median PSNR over the figure's images of guesses that need no message."""
    ids = choose(dataset, images + 200)
    pictures = [torch.from_numpy(np.array(dataset.images[i])).permute(2, 0, 1).double() / 255 for i in ids]
    each = [floors(p, pictures[images:]) for p in pictures[:images]]
    return {name: float(np.median([f[name] for f in each])) for name in each[0]}
