from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from hyperfed.core import UserError
from hyperfed.models import Network, Shape, build_model
from hyperfed.privacy.dlg import dlg, idlg, infer_labels
from hyperfed.privacy.hull import unmask
from hyperfed.privacy.inverting import invert_gradients
from hyperfed.privacy.lab import Attack, feature_correlation
from hyperfed.privacy.metrics import CAP, paired, psnr, psnr_affine, ssim
from hyperfed.privacy.observer import NotApplicable, noisy, threat
from hyperfed.privacy.search import Budget
from hyperfed.privacy.structured import structured
from leaks import decibels, played

NORMAL = Budget(evals=300, history=50)
GREY = Budget(evals=300, history=50, start="grey")


def test_psnr_is_the_papers() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 16, 16, generator=rng, dtype=torch.float64) for _ in range(2))
    expected = peak_signal_noise_ratio(np.asarray(255 * b), np.asarray(255 * a), data_range=255)
    assert psnr(a, b) == pytest.approx(expected, abs=1e-9)
    assert psnr(a, a) == CAP and ssim(a, a) == pytest.approx(1)
    assert psnr(a + 5, b) == psnr(torch.ones_like(a), b)  # clipped
    assert psnr_affine(0.2 * b + 0.3, b) > 90 > psnr(0.2 * b + 0.3, b)


def test_a_batch_is_compared_in_its_best_order() -> None:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paired(x[[2, 0, 3, 1]], x), x)


@pytest.mark.parametrize("image", [0, 1])
def test_fedavgs_message_gives_the_image_away(image: int) -> None:
    of = played("fedavg", image, start="default")
    seen = of.seen_by(threat("naive"))
    got = dlg(seen, NORMAL)
    assert decibels(got, of) > 40 and got.labels is not None and torch.equal(got.labels, of.labels)
    assert decibels(idlg(seen, NORMAL), of) > 60


def test_inverting_gradients_needs_no_learning_rate() -> None:
    of = played("fedavg")
    assert decibels(invert_gradients(of.seen_by(threat("blind+labels")), replace(GREY, evals=300)), of) > 18


@pytest.mark.parametrize("kind", ["fedper", "fedbabu", "all", "stem"])
def test_guessing_what_does_not_travel_recovers_nothing(kind: str) -> None:
    """Whoever keeps the head 'resists' this: FedPer is the control that shows how little it means."""
    of = played(kind)
    assert decibels(dlg(of.seen_by(threat("naive")), GREY), of) < 10
    assert decibels(idlg(of.seen_by(threat("naive+labels")), GREY), of) < 10
    assert decibels(invert_gradients(of.seen_by(threat("naive")), replace(GREY, evals=60)), of) < 15


@pytest.mark.parametrize("kind", ["fedper", "fedbabu", "all", "stem", "pfedhn"])
def test_with_all_secrets_known_the_same_search_succeeds(kind: str) -> None:
    of = played(kind)
    assert decibels(dlg(unmask(of.seen_by(threat("oracle"))), GREY), of) > 40
    if kind != "pfedhn":  # its generated network starts with small weights, and its gradient's direction hardly depends on the image
        assert decibels(invert_gradients(unmask(of.seen_by(threat("oracle"))), replace(GREY, evals=200)), of) > 15


@pytest.mark.parametrize("image", [0, 1])
def test_an_attacker_who_knows_no_secret_reads_hfns_message(image: int) -> None:
    of = played("all", image)
    got = structured(of.seen_by(threat("adaptive")), Budget(1000, 50, 2, start="grey", enough=1e-8))
    assert decibels(got, of) > 30
    v = of.private["embed.v"]
    assert got.embeddings is not None and ((got.embeddings - v).norm(dim=1) / v.norm(dim=1)).max() < 0.01


def test_a_private_stem_stops_that_search_and_a_known_one_does_not() -> None:
    of, budget = played("stem"), Budget(600, 50, 2, start="grey", enough=1e-8)
    got = structured(of.seen_by(threat("adaptive")), budget)
    assert decibels(got, of) < 15
    correlation = feature_correlation(got, of, 0)
    assert correlation is not None and correlation > 0.99  # the pixels are safe, what the first convolution makes of them is not
    elsewhere = feature_correlation(got, played("stem", 1), 0)
    assert elsewhere is not None and elsewhere < 0.9
    assert decibels(structured(of.seen_by(threat("adaptive+stem")), budget), of) > 30


def test_keeping_only_the_head_is_no_protection_from_an_adaptive_attacker() -> None:
    of = played("fedper")
    assert decibels(structured(of.seen_by(threat("adaptive")), replace(GREY, evals=600)), of) > 30


@pytest.mark.parametrize("attack", [dlg, invert_gradients])
def test_an_adaptive_attacker_searches_for_the_private_tensors_along(attack: Attack) -> None:
    """The head that FedPer keeps is an unknown like the image: nearer to the message, and to the image, than with a guess."""
    of, budget = played("fedper"), replace(GREY, evals=600)
    naive, adaptive = (attack(of.seen_by(threat(level)), budget, 0) for level in ("naive+labels", "adaptive+labels"))
    assert adaptive.objective < naive.objective / 2
    assert decibels(adaptive, of) > decibels(naive, of) + 3


def test_embeddings_found_along_the_way_are_reported() -> None:
    got = dlg(played("all").seen_by(threat("adaptive")), replace(GREY, evals=20))
    assert got.embeddings is not None and got.embeddings.shape == (3, 64)


def test_the_label_is_the_only_negative_entry() -> None:
    for image in range(20):
        of = played("fedavg", image)
        assert torch.equal(infer_labels(of.seen_by(threat("naive"))), of.labels)


def test_the_label_rule_is_undefined_without_the_classifiers_gradient() -> None:
    for kind in ("fedper", "all", "stem"):
        with pytest.raises(NotApplicable, match="does not hold: grant 'labels'"):
            idlg(played(kind).seen_by(threat("naive")), GREY)
    with pytest.raises(NotApplicable, match="a batch of 2"):
        infer_labels(played("fedavg", count=2).seen_by(threat("naive")))


def test_noise_hides_the_image_even_from_the_oracle() -> None:
    of = played("all")
    seen = of.seen_by(threat("oracle"))
    clear, little, much = (decibels(dlg(unmask(noisy(seen, z, 1)), GREY), of) for z in (0.0, 1e-4, 1e-1))
    assert clear > 60 > little > much and much < 12


def test_a_message_smaller_than_the_image_cannot_hold_it() -> None:
    small, large = played("all", embedding=1), played("all", embedding=16)
    assert decibels(dlg(small.seen_by(threat("oracle")), GREY), small) < decibels(dlg(large.seen_by(threat("oracle")), GREY), large)


def test_the_same_seed_gives_the_same_bits() -> None:
    of, budget = played("all"), Budget(60, 20, 2, start="grey")
    a, b, c = (structured(of.seen_by(threat("adaptive")), budget, seed) for seed in (1, 1, 2))
    assert a.images is not None and b.images is not None and c.images is not None
    assert torch.equal(a.images, b.images) and a.objective == b.objective and a.evals == b.evals
    assert not torch.equal(a.images, c.images)


def test_an_attempt_that_ends_in_nan_is_counted_and_tried_again_a_bounded_number_of_times() -> None:
    of = played("fedavg")
    seen = of.seen_by(threat("naive"))
    broken = replace(seen, change={n: c * float("nan") for n, c in seen.change.items()})
    got = dlg(broken, replace(GREY, retries=2))
    assert got.images is None and got.failed == 3 and got.evals == 3 and np.isnan(got.objective)
    assert decibels(got, of) == 0


def test_several_steps_and_batches_are_served_and_harder() -> None:
    one, four = played("fedavg"), played("fedavg", steps=4)
    a, b = (decibels(dlg(r.seen_by(threat("naive")), GREY), r) for r in (one, four))
    assert a > b
    pair = played("fedavg", count=2)
    got = dlg(pair.seen_by(threat("naive")), Budget(500, 50, start="grey"))
    assert got.images is not None and psnr(paired(got.images, pair.images)[0], pair.images[0]) > 15


def test_the_structured_attack_names_the_model_it_cannot_serve() -> None:
    seen = played("fedper").seen_by(threat("adaptive"))
    other: Network = build_model("mlp", Shape(1, 8, 10))
    with pytest.raises(UserError, match="attack 'structured' is written for the LeNet of DLG"):
        structured(replace(seen, model=other), GREY)


def test_budgets_are_checked() -> None:
    for wrong, words in (
        ({"evals": 0}, "budget.evals = 0"),
        ({"restarts": 0}, "budget.restarts = 0"),
        ({"start": "white"}, "budget.start 'white'"),
    ):
        with pytest.raises(UserError, match=words):
            Budget(**wrong)  # type: ignore[arg-type]
