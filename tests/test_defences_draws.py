"""Secret noise: the right distribution, from a key of 256 bits each, and nowhere from a generator of torch's, whose seeds can be tried."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from hyperfed.core import Round, UserError
from hyperfed.defences import CentralDP, ClientDP, DpSgd, build, make_guard
from hyperfed.defences.dp import noise
from hyperfed.defences.draws import Secret, Seeded
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import DeviceClient, Local, Workspace
from hyperfed.methods import METHODS
from hyperfed.methods.fedavg import Shared
from hyperfed.models import Shape, build_model
from problems import tiny_images, tiny_network
from test_defences import setting


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The operating system's entropy replaced by known bytes, each time others; how many were asked for."""
    asked: list[int] = []

    def known(n: int) -> bytes:
        asked.append(n)
        return np.random.default_rng(len(asked)).bytes(n)

    monkeypatch.setattr("hyperfed.defences.draws.os", SimpleNamespace(urandom=known))
    return asked


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whatever draws from torch fails."""

    def drawn(*_: Any, **__: Any) -> None:
        raise AssertionError("drawn from a generator of torch's")

    for name in ("rand", "randn", "rand_like", "randn_like", "normal", "randint", "randperm"):
        monkeypatch.setattr(torch, name, drawn)


def test_secret_numbers_are_uniform_and_normal(keys: list[int]) -> None:
    """200,000 of each, from known keys: Kolmogorov-Smirnov, moments, tails as heavy as they should be, neighbours without relation."""
    n = 200_000
    uniform, normal = Secret().uniform(n).numpy(), Secret().normal(torch.Size([400, 500])).flatten().double().numpy()
    assert 0 < uniform.min() < uniform.max() < 1 and kstest(uniform, "uniform").pvalue > 0.01
    assert kstest(normal, "norm").pvalue > 0.01
    assert abs(normal.mean()) < 4 / n**0.5 and abs(normal.std() - 1) < 4 / (2 * n) ** 0.5
    assert (np.abs(normal) > 3).mean() == pytest.approx(0.0027, rel=0.2)
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 4 / n**0.5


def test_every_tensors_noise_has_its_own_key_of_256_bits(keys: list[int]) -> None:
    """Nothing else goes in: the same keys give the same noise, others other noise."""
    like = {"a": torch.zeros(3, 5), "b": torch.zeros(15)}
    first, second = noise(like, 2.0, Secret()), noise(like, 2.0, Secret())
    assert keys == [32] * 4
    drawn = [t.flatten() for t in (*first.values(), *second.values())]
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))
    keys.clear()
    assert all(torch.equal(t, first[n]) for n, t in noise(like, 2.0, Secret()).items())


def test_the_ends_of_the_stream_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (0, 255):
        monkeypatch.setattr("hyperfed.defences.secagg.stream", lambda key, n, byte=byte: np.frombuffer(bytes([byte]) * 4 * n, np.uint32))
        assert Secret().normal(torch.Size([2])).abs().tolist() == pytest.approx([8.21, 8.21], abs=0.01)


@pytest.mark.parametrize("kind", [ClientDP, CentralDP])
def test_a_secret_message_draws_nothing_from_torch(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages of the same upload, in the same round of the same seed, differ."""
    guard = make_guard(kind(secret=True), setting(METHODS["fedavg"](tiny_network(), 4)))
    up, rnd = Shared({"head.weight": torch.zeros(10, 10)}), Round(1, torch.arange(4), torch.tensor([20] * 4))
    without_torch(monkeypatch)
    sent = [
        (guard.protect(1, 0, up, up) if kind is ClientDP else guard.open(rnd, rnd, [up] * 4, lambda *m: None)[1]).shared["head.weight"]
        for _ in range(2)
    ]
    assert not torch.equal(*sent) and float(sent[0].std()) > 0.1


def test_secret_steps_draw_their_batches_and_noise_from_keys(keys: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """DP-SGD: each of 2 steps asks for a key for its batch and one for the noise of each tensor, and nothing of the seed's generator."""
    method = METHODS["fedavg"](build_model("mlp", Shape(1, 8, 3), width=8), 3)
    each = make_guard(DpSgd(secret=True), setting(method, local=Local(1, 10))).per_example
    start, index, space = method.model.init(0), torch.arange(20), Workspace(method.model, tiny_images(20))
    seeded = torch.Generator().manual_seed(0)
    monkeypatch.setattr("hyperfed.engine.workspace.generator", lambda *_: seeded)
    without_torch(monkeypatch)
    before, ends = seeded.get_state(), []
    for _ in range(2):
        client = DeviceClient(space, 0, index, index[:0], 7, 1, 0.05, Optim(lr=0.05), Local(1, 10), "train", each)
        ends.append(client.fit(start))
    assert keys == [32] * (2 * 2 * (1 + len(start))) and torch.equal(seeded.get_state(), before)
    assert not any(torch.equal(t, ends[1][n]) for n, t in ends[0].items())
    assert each is not None
    batch, other = each.batches(torch.arange(1000), 500, 1, None, seeded)
    assert len(batch) == pytest.approx(500, abs=64) and set(batch.tolist()) != set(other.tolist())


def test_without_secret_the_bits_are_those_of_the_seed(keys: list[int]) -> None:
    drawn = noise({"a": torch.zeros(3, 5)}, 2.0, Seeded(torch.Generator().manual_seed(5)))["a"]
    assert torch.equal(drawn, 2.0 * torch.randn(3, 5, generator=torch.Generator().manual_seed(5))) and not keys


def test_secret_noise_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"privacy=client_dp needs the extra: pip install 'hyperfed\[privacy\]'"):
        make_guard(ClientDP(secret=True), setting(METHODS["fedavg"](tiny_network(), 4)))
