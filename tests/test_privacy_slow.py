"""The published attacks and ours at their own scale: MNIST and CIFAR-10 where HYPERFED_DATA_ROOT has them."""

from dataclasses import replace
from statistics import median

import pytest
import torch

from hyperfed.privacy.dlg import dlg, idlg, infer_labels
from hyperfed.privacy.hull import unmask
from hyperfed.privacy.metrics import ssim
from hyperfed.privacy.observer import noisy, threat
from hyperfed.privacy.search import Budget
from hyperfed.privacy.structured import structured
from leaks import decibels, needs_data, played

pytestmark = [pytest.mark.slow, needs_data]


def results(attack, kind: str, level: str, count: int, budget: Budget, name: str = "mnist", **settings):  # type: ignore[no-untyped-def]
    """PSNR by image, and the last two of each: recovered, recording."""
    pairs = [(attack(unmask((of := played(kind, i, name, **settings)).seen_by(threat(level))), budget, i), of) for i in range(count)]
    return [decibels(got, of) for got, of in pairs], pairs


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_idlg_reads_every_label_of_200_networks(name: str) -> None:
    for image in range(200):
        of = played("fedavg", image, name)
        assert torch.equal(infer_labels(of.seen_by(threat("naive"))), of.labels)


def test_dlg_and_idlg_on_mnist() -> None:
    budget = Budget(300, 50)
    found, _ = results(dlg, "fedavg", "naive", 24, budget, start="default")
    assert median(found) > 60 and min(found) > 40
    found, _ = results(idlg, "fedavg", "naive", 24, budget, start="default")
    assert median(found) > 80


def test_dlg_on_cifar10() -> None:
    found, _ = results(dlg, "fedavg", "naive", 16, Budget(600, 100), "cifar10", start="default")
    assert median(found) > 32 and min(found) > 25


@pytest.mark.parametrize(("name", "count"), [("mnist", 24), ("cifar10", 16)])
def test_naive_dlg_recovers_nothing_from_hfn_nor_from_fedper(name: str, count: int) -> None:
    for kind in ("all", "fedper"):
        found, pairs = results(dlg, kind, "naive", count, Budget(300, 50), name)
        assert max(found) < 8
        assert max(ssim(got.images[0], of.images[0]) for got, of in pairs) < 0.2


def test_the_oracle_reads_hfns_message_on_mnist() -> None:
    found, _ = results(dlg, "all", "oracle", 16, Budget(400, 100), start="default")
    assert median(found) > 60 and min(found) > 40


def test_the_structured_attack_reads_hfns_message_on_mnist() -> None:
    found, pairs = results(structured, "all", "adaptive", 8, Budget(3000, 50, 2, start="grey", enough=1e-9))
    assert median(found) > 30 and sum(f > 20 for f in found) >= 6
    errors = [float(((got.embeddings - (v := of.private["embed.v"])).norm(dim=1) / v.norm(dim=1)).max()) for got, of in pairs]
    assert median(errors) < 0.01


def test_the_structured_attack_reads_hfns_message_on_cifar10() -> None:
    found, _ = results(structured, "all", "adaptive", 4, Budget(3000, 100, 2, start="grey", enough=1e-9), "cifar10")
    assert median(found) > 22


def test_noise_of_a_hundredth_of_the_message_stops_even_the_oracle_on_mnist() -> None:
    of, budget = played("all", 0, "mnist"), Budget(600, 50, start="grey")
    seen = of.seen_by(threat("oracle"))
    assert decibels(dlg(unmask(seen), budget), of) > 40
    assert decibels(dlg(noisy(seen, 1e-2, 1), replace(budget, start="normal")), of) < 8


def test_a_message_smaller_than_the_image_cannot_hold_it_on_mnist() -> None:
    budget = Budget(1500, 100, start="grey")
    small, large = (played("all", 0, "mnist", embedding=n) for n in (1, 16))
    assert decibels(dlg(small.seen_by(threat("oracle")), budget), small) < 15
    assert decibels(dlg(large.seen_by(threat("oracle")), budget), large) > 40
