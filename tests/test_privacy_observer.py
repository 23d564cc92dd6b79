import gc
from dataclasses import replace

import pytest
import torch

from hyperfed.core import Role, UserError
from hyperfed.core.seeds import derive_seed
from hyperfed.engine.optim import Optim
from hyperfed.engine.workspace import Local
from hyperfed.methods import METHODS
from hyperfed.models import Network
from hyperfed.privacy.dlg import Recovered, dlg, model_gradient
from hyperfed.privacy.hull import embedding_hull, mixture, unmask
from hyperfed.privacy.networks import filters
from hyperfed.privacy.observer import NotApplicable, Observation, Training, threat
from hyperfed.privacy.record import Recording, record
from hyperfed.privacy.resnet import hull_of_a_round
from hyperfed.privacy.search import Budget
from hyperfed.privacy.structured import structured
from leaks import dataset, method_of, played
from problems import TinyNet

BUDGET = Budget(evals=30, history=10, start="grey")


def true_gradient(of: Recording) -> dict[str, torch.Tensor]:
    """Autograd's, on the client's model and images."""
    return model_gradient(of.seen_by(threat("oracle")), of.private, of.images, of.labels)


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n] - b[n].detach()).norm() / b[n].detach().norm()) for n in b)


@pytest.mark.parametrize("kind", ["fedavg", "fedper", "fedbabu", "fedrep", "fedprox", "all", "stem"])
def test_one_step_of_nesterov_momentum_and_weight_decay_is_inverted_exactly(kind: str) -> None:
    of = played(kind)
    if kind == "fedrep":  # its head trains first: the gradient is that of the new head, which the messages do not hold
        return assert_same_names(of)
    seen = of.seen_by(threat("naive"))
    assert relative(seen.gradient(), true_gradient(of)) < 1e-8
    return None


def assert_same_names(of: Recording) -> None:
    assert set(of.seen_by(threat("naive")).change) == {n for n in of.private if not n.startswith("fc")}


def test_pfedhns_delta_is_a_gradient_too() -> None:
    of = played("pfedhn")
    assert relative(of.seen_by(threat("naive")).gradient(), true_gradient(of)) < 1e-8


def test_fedbns_message_lacks_the_norms_and_its_gradient_is_exact() -> None:
    """A network with batch norm, two images: neither scale and shift nor running statistics are in the message."""
    data = dataset()
    method = METHODS["fedbn"](Network(lambda: TinyNet().double(), 3), 1)
    of = record(method, data.images[:2], data.labels[:2] % 3, optim=Optim(), local=Local(batch_size=2, steps=1), seed=1)
    seen = of.seen_by(threat("oracle"))
    assert not [n for n in seen.change if method.model.roles[n] in (Role.NORM, Role.STATS)]
    assert set(seen.secrets) == {n for n, r in method.model.roles.items() if r in (Role.NORM, Role.STATS)}
    assert relative(seen.gradient(), true_gradient(of)) < 1e-8
    got = dlg(of.seen_by(threat("naive")), replace(BUDGET, evals=5))
    assert got.images is not None and got.images.shape == (2, 1, 8, 8)


def test_several_steps_give_the_mean_gradient_along_the_path() -> None:
    """Three steps of a learning rate so small that the path is a point: the mean is the gradient."""
    assert Training(0.1, 0.9, True, 0.0, 1).gain == pytest.approx(1.9)
    assert Training(0.1, 0.0, False, 0.0, 3).gain == 3
    # Nesterov by hand: g (1 + mu) + g (1 + mu + mu^2)
    assert Training(0.1, 0.5, True, 0.0, 2).gain == pytest.approx(1.5 + 1.75)
    # heavy ball: 1 + (1 + mu)
    assert Training(0.1, 0.5, False, 0.0, 2).gain == pytest.approx(2.5)


def test_phis_gradient_is_the_closed_form() -> None:
    """dW_out = sum G a^T, dB_out = sum G, dW_i = sum_j (W_out^T G_j^i) v_j^T, dB_i = sum_j W_out^T G_j^i, G from the plain network."""
    of = played("all")
    g, phi, v = true_gradient(of), {n[6:]: t for n, t in of.private.items() if n.startswith("hyper.")}, of.private["embed.v"]
    kernels = filters(phi, v)
    plain = of.method.model.network  # type: ignore[attr-defined]
    weights = {f"convs.{j}.weight": k[:, : 1 if j == 0 else 12] for j, k in enumerate(kernels)}
    weights |= {n[4:]: t for n, t in of.private.items() if n.startswith("net.")}
    seen = replace(of.seen_by(threat("oracle")), model=plain, change={f"convs.{j}.weight": kernels[j] for j in range(3)})
    made = model_gradient(seen, weights, of.images, of.labels)
    slices = torch.zeros(3, 12, 5, 60, dtype=torch.float64)
    for j in range(3):
        rows = made[f"convs.{j}.weight"].permute(1, 2, 0, 3)  # [in, f, out, f]
        slices[j, : len(rows)] = rows.reshape(len(rows), 5, 60)
    a = torch.einsum("ide,je->jid", phi["w_in"], v) + phi["b_in"]
    back = torch.einsum("xyd,jixy->jid", phi["w_out"], slices)
    expected = {
        "hyper.w_out": torch.einsum("jixy,jid->xyd", slices, a),
        "hyper.b_out": slices.sum((0, 1)),
        "hyper.w_in": torch.einsum("jid,je->ide", back, v),
        "hyper.b_in": back.sum(0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(g[name].detach(), value.detach(), rtol=0, atol=1e-10)


def test_embeddings_lie_in_the_hull_that_the_message_shows() -> None:
    for kind, j in (("all", 3), ("stem", 2)):
        of = played(kind)
        hull = embedding_hull(of.seen_by(threat("adaptive")).gradient(), j)
        assert hull.distance(of.private["embed.v"]).max() < 1e-8 and hull.residual < 1e-8
        elsewhere = torch.randn(j, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert hull.distance(elsewhere).min() > 0.5


def test_more_embeddings_than_dimensions_have_no_hull() -> None:
    seen = played("all", embedding=2).seen_by(threat("adaptive"))
    with pytest.raises(NotApplicable, match="J must be <= N_v"):
        structured(seen, BUDGET)


def test_a_round_of_several_steps_still_shows_the_hull_of_the_residual_networks_embeddings() -> None:
    near = hull_of_a_round(dataset(), images=24, epochs=2)
    assert (near["embeddings"], near["steps"]) == (32, 2)
    assert near["distance_max"] < 1e-2 and near["distance_random"] > 0.2
    with pytest.raises(NotApplicable, match="J must be <= N_v"):
        hull_of_a_round(dataset(), images=8, epochs=1, embedding=16)


def test_a_public_seed_makes_every_attacker_an_oracle_in_round_1() -> None:
    """Clients that start from the common seed hold what the server can draw itself; with seeds of their own they do not."""
    data, method = dataset(), method_of("all", dataset())
    settings = {"optim": Optim(), "local": Local(batch_size=1, steps=1), "seed": 3}
    public = method.model.init(derive_seed(3, "init"))
    alike = record(method, data.images[:1], data.labels[:1], private_init=frozenset(), **settings).private  # type: ignore[arg-type]
    assert all(torch.equal(alike[n], t) for n, t in public.items())
    own = record(method, data.images[:1], data.labels[:1], **settings).private  # type: ignore[arg-type]
    assert [n for n, t in public.items() if torch.equal(own[n], t)] == [n for n in public if n.startswith("hyper.")]


def test_known_embeddings_turn_hfns_message_into_the_plain_networks() -> None:
    of = played("all")
    plain = unmask(of.seen_by(threat("oracle")))
    true = model_gradient(plain, {**plain.known}, of.images, of.labels)
    assert relative(plain.gradient(), true) < 1e-8
    assert mixture(of.seen_by(threat("oracle")), of.private["embed.v"]).factors is None


def test_an_observation_holds_what_was_sent_or_granted_and_no_reference_to_the_client() -> None:
    of = played("all")
    for text, prefixes in (
        ("naive", ()),
        ("adaptive+embeddings", ("embed.",)),
        ("adaptive+head", ("net.fc",)),
        ("adaptive+stem", ("net.convs.0",)),
    ):
        seen = of.seen_by(threat(text))
        assert set(seen.before) == set(seen.change) == {n for n in of.private if n.startswith("hyper.")}
        assert all(n.startswith(prefixes) for n in seen.secrets) and bool(seen.secrets) == bool(prefixes)
        assert seen.labels is None
    private = {t.data_ptr() for t in (*of.private.values(), of.images, of.labels)}
    reached, todo = set(), [of.seen_by(threat("naive"))]
    while todo:
        thing = todo.pop()
        if id(thing) in reached or isinstance(thing, type) or callable(thing) or hasattr(thing, "__spec__"):
            continue
        reached.add(id(thing))
        assert not isinstance(thing, Recording) and type(thing).__module__.partition(".")[2] not in ("engine.local", "engine.workspace")
        assert not (isinstance(thing, torch.Tensor) and thing.numel() and thing.data_ptr() in private)
        todo += gc.get_referents(thing)
    assert len(reached) > 20


@pytest.mark.parametrize(("attack", "level"), [(dlg, "naive"), (structured, "adaptive")])
def test_equal_messages_of_different_clients_give_equal_bits(attack: object, level: str) -> None:
    a, other = played("all"), played("all", 1)
    b = replace(a, private=other.private, images=other.images, labels=other.labels)
    x, y = (attack(r.seen_by(threat(level)), BUDGET, 3) for r in (a, b))  # type: ignore[operator]
    assert isinstance(x, Recovered) and torch.equal(x.images, y.images) and x.objective == y.objective
    different = attack(other.seen_by(threat(level)), BUDGET, 3)  # type: ignore[operator]
    assert not torch.equal(x.images, different.images)


def test_the_learning_rate_is_knowledge() -> None:
    seen = played("fedavg").seen_by(threat("blind"))
    assert isinstance(seen, Observation) and seen.training is None
    with pytest.raises(NotApplicable, match="neither learning rate nor steps"):
        dlg(seen, BUDGET)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("omniscient", "threat 'omniscient' unknown"),
        ("adaptive+heads", "threat grants 'heads' unknown; did you mean 'head'?"),
        ("adaptive+", "threat grants '' unknown"),
    ],
)
def test_an_unknown_threat_model_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")) as problem:
        threat(text)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("kind", ["local", "fedfomo"])
def test_a_method_without_weights_to_compare_is_refused(kind: str) -> None:
    with pytest.raises(NotApplicable, match=r"sends no weights|downloads other weights"):
        played(kind).seen_by(threat("naive"))
