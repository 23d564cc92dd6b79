"""Optimisers: schedules over rounds, rates and decays by role, and Adam as the library has it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperfed.core import ALL, Client, Params, Role, Scope
from hyperfed.core.descent import adam
from hyperfed.engine.optim import Optim
from hyperfed.engine.round import Finetune
from hyperfed.engine.workspace import Local
from hyperfed.methods.fedavg import FedAvg, Shared
from problems import Quadratic, quadratic_client, tiny_engine, tiny_network

PARTS = {"body": Role.BODY, "head": Role.HEAD}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, {1: 0.1, 40: 0.1}),
        ({"schedule": "multistep"}, {1: 0.1, 20: 0.1, 21: 0.01, 30: 0.01, 31: 0.001, 40: 0.001}),
        ({"schedule": "multistep", "milestones": (0.1,), "gamma": 0.5}, {4: 0.1, 5: 0.05}),
        ({"schedule": "cosine"}, {1: 0.1, 21: 0.05, 31: 0.1 * (1 - 0.5**0.5) / 2}),
    ],
)
def test_schedules_over_40_rounds(settings: dict[str, Any], rates: dict[int, float]) -> None:
    """A milestone of 0.5 is reached when half of the rounds are over: round 21 is the first of the lower rate."""
    optim = Optim(lr=0.1, **settings)
    assert {number: optim.rate(number, 40) for number in rates} == pytest.approx(rates)


def test_a_role_has_its_own_rate() -> None:
    """f = 1/2 (b + h - 1)^2 from 0: both gradients are -1, so b = 0.1 and with half of the rate h = 0.05."""
    client = quadratic_client([1.0], Quadratic(PARTS), lr_scale={Role.HEAD: 0.5})
    after = client.fit({name: torch.zeros(()) for name in PARTS})
    assert {n: t.item() for n, t in after.items()} == pytest.approx({"body": 0.1, "head": 0.05})


def test_a_role_has_its_own_decay() -> None:
    """At b = h = 1/2 the gradient is 0: the decay of 0.5 takes 0.1 x 0.5 x 1/2 from b, and nothing from h."""
    client = quadratic_client([1.0], Quadratic(PARTS), weight_decay=0.5, decay_scale={Role.HEAD: 0.0})
    after = client.fit({name: torch.tensor(0.5) for name in PARTS})
    assert {n: t.item() for n, t in after.items()} == pytest.approx({"body": 0.475, "head": 0.5})


def test_fine_tuning_has_a_rate_of_its_own_in_every_round(tmp_path: Path) -> None:
    seen: list[tuple[float, int, Scope]] = []

    class Watched(FedAvg):
        def finetune(self, client: Client, params: Params, epochs: int, train: Scope = ALL) -> Params:
            seen.append((client.lr, epochs, train))  # type: ignore[attr-defined]
            return super().finetune(client, params, epochs, train)

    engine = tiny_engine(Watched(tiny_network(), 3), tmp_path, optim=Optim(lr=0.1, schedule="multistep"))
    for number in (1, 10):
        engine.correct(0, Shared(engine.initial()), number, Finetune(2, 0.003, (Role.HEAD,)))
    assert seen == [(0.003, 2, frozenset({Role.HEAD}))] * 2


def test_adam_is_the_librarys() -> None:
    """Four steps with gradients of their own."""
    start = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    live = {n: torch.nn.Parameter(t.clone()) for n, t in start.items()}
    reference = torch.optim.Adam(live.values(), lr=0.05)
    params, first, second = start, *({n: torch.zeros_like(t) for n, t in start.items()} for _ in range(2))
    for number in range(1, 5):
        gradient = {n: t.square() - number for n, t in params.items()}
        for name, t in live.items():
            t.grad = gradient[name].clone()
        reference.step()
        params, first, second = adam(params, gradient, first, second, 0.05, number)
        for name, t in live.items():
            torch.testing.assert_close(params[name], t.detach())


def test_statistics_alone_follow_the_images_and_read_no_label(tmp_path: Path) -> None:
    """Momentum 0.1, two passes over one batch of mean m: r = 0.81 r0 + 0.19 m. Nothing else moves, whatever the labels."""
    engine = tiny_engine(FedAvg(tiny_network(), 3), tmp_path, local=Local(1, 20))
    down, roles, images = Shared(engine.initial()), engine.method.model.roles, engine.space.images
    renewed = engine.deployed(0, down, 1, Finetune(2, 0.003, (Role.STATS,)))
    x, _ = images.batch(engine.train_index[0])
    seen = torch.nn.functional.conv2d(x, down.shared["stem.weight"], stride=2, padding=1).mean((0, 2, 3))
    assert torch.allclose(renewed["norm1.running_mean"], 0.81 * down.shared["norm1.running_mean"] + 0.19 * seen, atol=1e-6)
    assert not torch.allclose(renewed["scale.running_var"], down.shared["scale.running_var"])
    assert all(torch.equal(t, down.shared[n]) for n, t in renewed.items() if roles[n] is not Role.STATS)
    images.y = (images.y + 1) % 3
    again = engine.deployed(0, down, 1, Finetune(2, 0.003, (Role.STATS,)))
    assert all(torch.equal(t, renewed[n]) for n, t in again.items())
