"""The device side of an engine: one model in place, the data as one tensor, and the client that methods see."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hyperfed.core import ALL, STATISTICS, Model, Objective, Over, Params, Role, Scope, Step
from hyperfed.core.seeds import generator
from hyperfed.engine.bf16 import autocast
from hyperfed.engine.gpu import Body, Gpu, Recorder
from hyperfed.engine.guard import PerExample
from hyperfed.engine.optim import Optim, Standing
from hyperfed.models.network import tensors

PRECISIONS = ("fp32", "bf16")


ADVICE = {
    "train": "Use a smaller optim.lr, optim.clip=10, or on_nan=skip to leave such clients out of the round.",
    "finetune": "Use a smaller finetune.lr, optim.clip=10, or on_nan=skip to score such clients without fine-tuning.",
}
"""What to do about a loss that is not finite, by what the client trains for."""


class NonFiniteLoss(ArithmeticError):
    """The local loss or weights became NaN or infinite: where, and at which learning rate. ``advice``: what to do about it."""

    def __init__(self, client: int, number: int, step: int, lr: float, purpose: str = "train") -> None:
        where = f"in round {number} at {'fine-tuning' if purpose == 'finetune' else 'local'} step {step} (learning rate {lr:g})"
        super().__init__(f"the loss of client {client} is not finite {where}.")
        self.advice = ADVICE.get(purpose, "Use a smaller optim.lr, or optim.clip=10.")
        self.client, self.number, self.step, self.lr = client, number, step, lr


@dataclass(frozen=True)
class Local:
    """How a client trains: epochs (or ``steps`` mini-batches), batch size."""

    epochs: int = 4
    batch_size: int = 128
    steps: int | None = None


class Images:
    """The whole data set as one uint8 tensor [n, H, W, C] on the device, normalised batch by batch."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> None:
        self.x = torch.from_numpy(np.array(images)).to(device)
        self.y = torch.from_numpy(np.array(labels)).to(device)
        self.device = device
        self.mean = torch.tensor([255 * m for m in mean], device=device).view(-1, 1, 1)
        self.scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(-1, 1, 1)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] (channels last) of zero mean and unit variance, labels [B]."""
        x = self.x[index].permute(0, 3, 1, 2).to(torch.float32)
        return x.sub_(self.mean).mul_(self.scale), self.y[index]


class Workspace:
    """One model in place: weights are copied in, trained and read out; no module is ever built per client.

    On a GPU everything runs on a stream of its own, and steps are replayed where they can be (:mod:`hyperfed.engine.gpu`).
    """

    def __init__(self, model: Model, images: Images, precision: str = "fp32", gpu: Gpu | None = None) -> None:
        self.model, self.images, self.precision, self.gpu = model, images, precision, gpu or Gpu()
        device = images.device
        module = model.module().to(device)
        self.module: nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.live: Params = dict(tensors(self.module))
        self.names = list(self.live)
        self.tensors = [t.detach() for t in self.live.values()]
        self.has_batch_norm = Role.STATS in model.roles.values()
        self.recorder = Recorder(device, self.gpu.graphs) if device.type == "cuda" else None
        self.met: set[int] = set()
        """Clients that have trained here beside others on models of their own."""
        self._standing: dict[Hashable, Standing] = {}
        self._places: dict[Hashable, Params] = {}

    def another(self) -> "Workspace":
        """One more like it."""
        return type(self)(self.model, self.images, self.precision, self.gpu)

    def aside(self) -> AbstractContextManager[None]:
        """The stream that this model is worked on; nothing to change on the CPU."""
        return nullcontext() if self.recorder is None else self.recorder.aside()

    def run(self, kind: Hashable, body: Body, index: Tensor) -> Tensor:
        """``body(index)``, replayed where that can be done; see :class:`~hyperfed.engine.gpu.Recorder`."""
        return body(index) if self.recorder is None else self.recorder(kind, body, index)

    def optimiser(self, optim: Optim, groups: list[dict[str, object]], lr: float) -> tuple[Hashable, torch.optim.SGD]:
        """An optimiser without history, and what tells it from others. On a GPU it is the same object every time, for replays."""
        if self.recorder is None:
            return None, optim.build(groups, lr)
        kind = optim.kind(groups, {id(t): n for n, t in self.live.items()})
        if kind not in self._standing:
            self._standing[kind] = Standing(optim, groups, self.images.device)
        return kind, self._standing[kind].begin(groups)

    def place(self, key: Hashable, tensors: Params) -> Params:
        """Copies of ``tensors`` on the device, in the same place every time, for replays. Raises ValueError where names, shapes or types
        are not those that came first for ``key``."""
        if key not in self._places:
            self._places[key] = {n: torch.empty_like(t, device=self.images.device) for n, t in tensors.items()}
        held = self._places[key]
        for name in held.keys() | tensors.keys():
            came, kept = ((name in of and (of[name].shape, of[name].dtype)) for of in (tensors, held))
            if came != kept:
                raise ValueError(
                    f"an objective's tensor {name!r} was {kept or 'absent'} and is {came or 'absent'}: steps cannot be replayed."
                )
            held[name].copy_(tensors[name])
        return held

    def load(self, params: Params) -> None:
        """Copy weights in."""
        torch._foreach_copy_(self.tensors, [params[n] for n in self.names])

    def read(self) -> Params:
        """Copy weights out, contiguous."""
        out = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in self.tensors]
        torch._foreach_copy_(out, self.tensors)
        return dict(zip(self.names, out, strict=True))

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where asked for."""
        if self.precision == "fp32":
            return nullcontext()
        return autocast(self.images.device)

    def forward(self, x: Tensor) -> Tensor:
        """The live model's output in float32, [B, C]."""
        with self.autocast():
            return self.module(x).float()


class Placed:
    """An objective whose tensors are always in the same place on a GPU, so that steps over one client's are replayed over another's."""

    def __init__(self, space: Workspace, kind: Hashable, objective: Over) -> None:
        self.space, self.kind, self.objective = space, (kind, objective.of), objective
        self.own = [space.place((self.kind, "own", i), tensors) for i, tensors in enumerate(objective.own)]
        self.drawn: dict[int, tuple[Params, ...]] = {}

    def drawing(self, batches: Iterator[Tensor], rng: torch.Generator) -> Iterator[Tensor]:
        """The batches; before each what is drawn for it."""
        for index in batches:
            if self.objective.draw is not None:
                new = self.objective.draw(rng, len(index))
                self.drawn[len(index)] = (self.space.place((self.kind, "drawn", len(index)), new),)
            yield index

    def __call__(self, step: Step) -> Tensor:
        return self.objective.of(step, *self.own, *self.drawn.get(len(step.y), ()))


@dataclass
class DeviceClient:
    """The :class:`~hyperfed.core.Client` of the in-process engine. ``train`` and ``held_out`` index the data set."""

    space: Workspace
    k: int
    train: Tensor
    held_out: Tensor
    seed: int
    number: int
    lr: float
    optim: Optim
    local: Local
    purpose: str = "train"
    per_example: PerExample | None = None
    losses: list[float] = field(default_factory=list)
    calls: int = 0

    @property
    def num_examples(self) -> int:
        """Training examples."""
        return len(self.train)

    def label_counts(self) -> Tensor:
        """Training examples per class, [C]."""
        return torch.bincount(self.space.images.y[self.train], minlength=self.space.model.num_classes).cpu()

    def _batches(self, rng: torch.Generator, epochs: int, steps: int | None) -> Iterator[Tensor]:
        """Index tensors of true ragged batches; a batch of one sample is skipped where there is batch norm."""
        n, size = len(self.train), self.local.batch_size
        least = 2 if self.space.has_batch_norm else 1
        served = 0
        while min(n, size) >= least and (served < steps if steps is not None else epochs > 0):
            epochs -= 1
            order = self.train[torch.randperm(n, generator=rng).to(self.train.device)]
            for index in order.split(size):
                if len(index) < least or served == steps:
                    continue
                served += 1
                yield index

    def fit(
        self,
        params: Params,
        objective: Objective | None = None,
        *,
        train: Scope = ALL,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> Params:
        """See :class:`~hyperfed.core.Client`. Raises :class:`NonFiniteLoss`."""
        with self.space.aside():
            return self._fit(params, objective, train, epochs, steps)

    def _fit(self, params: Params, objective: Objective | None, train: Scope, epochs: int | None, steps: int | None) -> Params:
        space, local = self.space, self.local
        if epochs is None and steps is None:
            epochs, steps = local.epochs, local.steps
        rng = generator(self.seed, self.purpose, self.number, self.k, self.calls)
        self.calls += 1
        space.load(params)
        space.module.train()
        groups = self.optim.groups(space.live, space.model.roles, train, self.lr)
        trained = [t for g in groups for t in g["params"]]  # type: ignore[attr-defined]
        for t in space.live.values():
            t.requires_grad_(False)
        for t in trained:
            t.requires_grad_(True)
        if not trained:
            with torch.no_grad():
                for index in self._batches(rng, epochs or 0, steps) if train == STATISTICS else ():
                    space.forward(space.images.batch(index)[0])  # in training mode: the running statistics follow the images
            return space.read()
        kind, optimiser = space.optimiser(self.optim, groups, self.lr)
        each, named = self.per_example, {n: t for n, t in space.live.items() if t.requires_grad}
        batches = self._batches(rng, epochs or 0, steps)
        if each is not None:
            batches = each.batches(self.train, local.batch_size, epochs or 0, steps, rng)
        if kind is not None and each is None and isinstance(objective, Over):
            objective = placed = Placed(space, kind, objective)
            kind, batches = placed.kind, placed.drawing(batches, rng)
        elif each is not None or objective is not None:
            kind = None  # an objective may hold tensors of its own, and noise is drawn anew: no replays

        def step(index: Tensor) -> Tensor:
            x, y = space.images.batch(index)
            if each is not None:
                loss = each.backward(space, named, (x, y), objective, min(local.batch_size, len(self.train)), rng)
            else:
                seen = Step(space.model, space.live, x, y, space.forward, rng)
                loss = seen.loss if objective is None else objective(seen)
                optimiser.zero_grad()
                loss.backward()
            if self.optim.clip is not None:
                nn.utils.clip_grad_norm_(trained, self.optim.clip)
            optimiser.step()
            return loss.detach()

        losses = [space.run(kind, step, index) for index in batches]
        self._check(losses, trained)
        return space.read()

    def _check(self, losses: list[Tensor], trained: list[Tensor]) -> None:
        if not losses:
            return
        values = torch.stack(losses)
        norms = torch.stack(torch._foreach_norm(trained)).sum()
        if not torch.isfinite(values.sum() + norms):
            bad = (~torch.isfinite(values)).nonzero()
            raise NonFiniteLoss(self.k, self.number, int(bad[0]) + 1 if len(bad) else len(losses), self.lr, self.purpose)
        self.losses.append(float(values.mean()))

    def mean_loss(self, params: Params) -> Tensor:
        """Mean loss on the held-out part; on the training part where nothing is held out."""
        index = self.held_out if len(self.held_out) else self.train
        loss = self.space.model.loss
        return (self._total("mean_loss", params, index, 1024, lambda out, y: loss(out, y) * len(y)) / len(index)).cpu()

    def correct(self, params: Params, index: Tensor, batch_size: int = 1024) -> int:
        """How many of the samples ``index`` the model gets right."""
        return int(self._total("correct", params, index, batch_size, lambda out, y: (out.argmax(1) == y).sum()))

    @torch.no_grad()
    def _total(self, kind: str, params: Params, index: Tensor, batch_size: int, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over batches of ``of`` (output [B, C], labels [B]), the model at rest."""
        space = self.space

        def body(part: Tensor) -> Tensor:
            x, y = space.images.batch(part)
            return of(space.forward(x), y)

        with space.aside():
            space.load(params)
            space.module.eval()
            return sum((space.run(kind, body, part) for part in index.split(batch_size) if len(part)), torch.zeros((), device=index.device))
