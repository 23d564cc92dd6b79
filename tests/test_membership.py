"""Membership inference where the answer is known: memorised labels leak, an untrained model does not, and one shadow run tells nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hyperfed.methods import METHODS
from hyperfed.models import Shape, build_model
from hyperfed.privacy.membership import Scores, attacks, confidence, halves, leak, lira, main
from problems import tiny_engine, tiny_images


def test_opposite_halves() -> None:
    """Runs 2i and 2i + 1 swap members and non-members; other pairs draw anew."""
    pool = np.arange(11) + 40
    a, b, c = (halves(pool, m, 3, 0) for m in (0, 1, 2))
    assert np.array_equal(a.train, b.test) and np.array_equal(a.test, b.train)
    assert np.array_equal(np.sort(np.concatenate([a.train, a.test])), pool)
    assert not np.array_equal(a.train, c.train)


def test_confidence_is_the_logit_of_the_probability(tmp_path: Path) -> None:
    method = METHODS["local"](build_model("mlp", Shape(1, 8, 3)), 3)
    engine = tiny_engine(method, tmp_path)
    index = torch.arange(7)
    x, y = engine.space.images.batch(index)
    output, _ = method.model.apply(engine.initial(), x, train=False)
    p = output.double().softmax(1)[torch.arange(7), y]
    torch.testing.assert_close(
        torch.from_numpy(confidence(engine.space, engine.initial(), index)), torch.log(p / (1 - p)), rtol=1e-4, atol=1e-4
    )


def test_an_overfit_model_leaks_and_an_untrained_one_does_not(tmp_path: Path) -> None:
    """200 records of random pixels and labels can only be memorised: members are told from non-members of the same client."""
    images, rng = tiny_images(200), torch.Generator().manual_seed(0)
    images.x = torch.randint(256, images.x.shape, generator=rng, dtype=torch.uint8)
    images.y = torch.randint(3, (200,), generator=rng)
    method = METHODS["local"](build_model("mlp", Shape(1, 8, 3), width=128), 1)
    engine = tiny_engine(method, tmp_path, (200,))
    engine.space.images = images
    member = torch.zeros(200, dtype=torch.bool)
    member[torch.randperm(200, generator=torch.Generator().manual_seed(1))[:100]] = True
    engine.train_index = [member.nonzero().flatten()]
    trained = engine.client(0, 1, "train", engine.optim, 0.02).fit(engine.initial(), epochs=60)
    found = {}
    for name, params in (("untrained", engine.initial()), ("overfit", trained)):
        found[name] = leak(confidence(engine.space, params, torch.arange(200))[None], member.numpy()[None])
    assert found["overfit"].auc > 0.9 and found["overfit"].balanced_accuracy > 0.85
    assert abs(found["untrained"].auc - 0.5) < 0.1  # its standard error is 0.04


def shadows(gap: float, records: int = 400, runs: int = 8) -> Scores:
    """phi ~ N(difficulty of the record + gap if a member, 1), difficulties ~ N(0, 4^2); opposite members in each pair."""
    rng = np.random.default_rng(0)
    half = rng.random((runs // 2, records)) < 0.5
    member = np.stack([side for h in half for side in (h, ~h)])
    phi = 4 * rng.normal(size=records) + gap * member + rng.normal(size=(runs, records))
    return Scores(phi, member)


def test_shadows_see_through_difficulty() -> None:
    """A gap of 3 against deviation 1: AUC 0.98 for who knows each record's mean, 0.70 for one threshold over difficulties of 4."""
    found = attacks(shadows(3.0))
    assert found["loss threshold"].auc == pytest.approx(0.70, abs=0.03)  # Phi(3 / sqrt(2 (1 + 16)))
    assert found["LiRA online"].auc > 0.92
    assert found["LiRA offline"].auc > 0.92
    assert found["LiRA online"].tpr_at_1_percent > 3 * found["loss threshold"].tpr_at_1_percent


def test_without_a_gap_no_attack_finds_anything() -> None:
    scores = shadows(0.0)
    for online in (True, False):
        assert leak(lira(scores, online=online), scores.member).auc == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    "overrides",
    [["method=fedper"], ["method=hfn", "model=resnet"], ["method=pfedhn"], ["privacy=secagg", "participation=0.67"]],
)
def test_the_command_on_small_federations(overrides: list[str], tmp_path: Path) -> None:
    """Two positions, a file; an undertrained federation hardly leaks."""
    small = ["model=mlp", "num_clients=4", "rounds=1", "participation=1", "local.steps=2", "data.fraction=0.2", "threads=1"]
    assert main([*small, *overrides, "--runs", "2", "--out", str(tmp_path / "a.json")]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["leaks"]) == {"released", "server"} and found["records"] > 300
    for position in found["leaks"].values():
        assert 0.4 < position["loss threshold"]["auc"] < 0.65
