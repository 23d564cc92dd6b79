"""Membership inference: was a record among a client's training data? Whole federations are run with every client's records resplit.

In run m each client trains on one half of its records (the members) and holds out the other; runs 2i and 2i + 1 use opposite halves, so
every record is a member in half of the runs. Each run is attacked in turn; for LiRA the other pairs are its shadows.

    phi = log p_y / (1 - p_y)                    the logit-scaled confidence in the true class
    loss threshold:   phi itself, which falls with the loss (Yeom et al., CSF 2018)
    LiRA, online:     log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out)
    LiRA, offline:    (phi - mu_out) / s_out     (Carlini et al., S&P 2022; deviations over all records, since the shadows are few)
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor

from hyperfed.core import ALL, Params, Role, Round, UserError, flatten, invalid, select
from hyperfed.core.files import write_json
from hyperfed.core.seeds import derive_seed, generator
from hyperfed.data import ClientIndices, load_dataset
from hyperfed.engine.local import LocalEngine
from hyperfed.engine.round import federate
from hyperfed.engine.workspace import DeviceClient, Workspace
from hyperfed.run.build import choose_device, local_engine, make_clients, make_model
from hyperfed.run.config import Config, make_config, writable

POSITIONS = {
    "released": "the client's personal model is released",
    "server": "a curious server: what the client sends, completed with parts trained on the held-out records of other clients",
}
FALSE_POSITIVES = (0.001, 0.01)


class Scores(NamedTuple):
    """phi of every record in every run, and whether it was a member: [M, R] each."""

    phi: np.ndarray
    member: np.ndarray


class Leak(NamedTuple):
    """How well an attack tells members from non-members of the same clients; ``deviation`` is that of the AUC over runs."""

    auc: float
    deviation: float
    balanced_accuracy: float
    tpr_at_01_percent: float
    tpr_at_1_percent: float


def halves(pool: np.ndarray, m: int, k: int, seed: int) -> ClientIndices:
    """Client ``k``'s records in run ``m``: train and held out."""
    order = torch.randperm(len(pool), generator=generator(seed, "membership", m // 2, k)).numpy()
    middle = len(pool) // 2
    first, second = np.sort(pool[order[:middle]]), np.sort(pool[order[middle:]])
    return ClientIndices(first, second) if m % 2 == 0 else ClientIndices(second, first)


@torch.no_grad()
def confidence(space: Workspace, params: Params, index: Tensor) -> np.ndarray:
    """phi of the records ``index``, float64 [n]."""
    space.load(params)
    space.module.eval()
    out = []
    for part in index.split(1024):
        x, y = space.images.batch(part)
        z = space.forward(x).double()
        own = z.gather(1, y[:, None]).squeeze(1)
        out.append(own - torch.logsumexp(z.scatter(1, y[:, None], -torch.inf), 1))
    return torch.cat(out).cpu().numpy()


def by_name(message: Any, engine: LocalEngine) -> Params:
    """The model's tensors among a message's, in clear: masked ones are integers."""
    named = {n.partition("/")[2]: t for n, t in flatten(message).items() if t.is_floating_point()}
    return select(named, engine.method.model.roles, ALL)


def completion(engine: LocalEngine, down: Any, number: int, others: Sequence[int]) -> Params:
    """A whole model around what a server has sent: what it has not got, it trains on the held-out records of ``others``."""
    sent, roles = by_name(down, engine), engine.method.model.roles
    missing = frozenset(role for n, role in roles.items() if n not in sent)
    own = {**engine.initial(), **sent}
    if not missing - {Role.STATS}:
        return own
    records, space, optim = torch.cat([engine.test_index[j] for j in others]), engine.space, engine.optim
    attacker = DeviceClient(space, others[0], records, records[:0], engine.seed, number, optim.lr, optim, engine.local, "completion")
    return attacker.fit(own, train=missing)


def seen_by_server(engine: LocalEngine, k: int, down: Any, number: int, around: Params) -> Params:
    """Client ``k``'s next upload where that is weights in clear, else what the server sent it; the rest from ``around``."""
    if engine.guard.sum_only:
        return {**around, **by_name(down, engine)}
    upload = engine.turn(k, number, down)[1].upload
    weights = by_name(upload, engine) if type(upload)._fields == type(down)._fields[:1] else {}
    return {**around, **by_name(down, engine), **weights}


def run_once(config: Config, m: int, dataset: Any, pools: list[np.ndarray], folder: Path, positions: Sequence[str]) -> dict[str, Scores]:
    """One federation, and what each position sees of every record; [1, R]."""
    device = choose_device(config.device)
    config = dataclasses.replace(config, seed=derive_seed(config.seed, "membership", m) % 2**31)
    model = make_model(config, dataset)
    method = config.build_method(model)
    if method.pooled:
        raise UserError(f"method {config.method['name']!r} pools the data of all clients: membership in one client's data has no meaning.")
    clients = [halves(pool, m, k, 0) for k, pool in enumerate(pools)]
    engine = local_engine(config, device, dataset, clients, method, folder / str(m))
    server, _ = federate(method, engine, config.rounds, config.participation, config.seed, engine.guard)
    everyone = Round(config.rounds + 1, torch.arange(config.num_clients), torch.tensor(engine.examples))
    found: dict[str, list[np.ndarray]] = {position: [] for position in positions}
    ids = range(config.num_clients)
    around = [
        completion(engine, method.download(server, everyone, half), everyone.number, [k for k in ids if k % 2 != half] or [0])
        for half in (0, 1)[: config.num_clients]
    ]
    for k, pool in enumerate(pools):
        down = method.download(server, everyone, k)
        for position in positions:
            released = position == "released"
            params = engine.model_of(k, down) if released else seen_by_server(engine, k, down, everyone.number, around[k % 2])
            found[position].append(confidence(engine.space, params, torch.from_numpy(pool).to(device)))
    member = np.concatenate([np.isin(pool, c.train) for pool, c in zip(pools, clients, strict=True)])
    return {position: Scores(np.concatenate(phi)[None], member[None]) for position, phi in found.items()}


def gather(config: Config, runs: int, positions: Sequence[str]) -> dict[str, Scores]:
    """All federations."""
    dataset = load_dataset(config.dataset["name"], config.data.root, config.data.cache)
    pools = [np.sort(np.concatenate([c.train, c.test])) for c in make_clients(config, dataset)]
    with TemporaryDirectory() as folder:
        each = [run_once(config, m, dataset, pools, Path(folder), positions) for m in range(runs)]
    return {p: Scores(*(np.concatenate([getattr(e[p], part) for e in each]) for part in Scores._fields)) for p in positions}


def lira(scores: Scores, *, online: bool) -> np.ndarray:
    """The attack's score of every record in every run, [M, R]; the shadows are the other pairs: as many with the record as without.

    (The run's own twin must stay out: it would always be of the other kind, and a mean over fewer shadows is less likely a priori.)
    """
    phi, member = scores.phi, scores.member
    out = np.empty_like(phi)
    for m in range(len(phi)):
        others = np.arange(len(phi)) // 2 != m // 2
        statistics = []
        for side in (member[others], ~member[others]):
            count = side.sum(0)
            mean = np.where(side, phi[others], 0).sum(0) / np.maximum(count, 1)
            spread = np.where(side, (phi[others] - mean) ** 2, 0).sum() / max(1, (count - 1).clip(min=0).sum())
            statistics.append((mean, spread + 1e-12))
        (mu_in, var_in), (mu_out, var_out) = statistics
        likely_in = -((phi[m] - mu_in) ** 2) / (2 * var_in) - 0.5 * np.log(var_in)
        likely_out = -((phi[m] - mu_out) ** 2) / (2 * var_out) - 0.5 * np.log(var_out)
        out[m] = likely_in - likely_out if online else (phi[m] - mu_out) / np.sqrt(var_out)
    return out


def leak(score: np.ndarray, member: np.ndarray) -> Leak:
    """ROC of all runs together, [M, R] each."""
    falsely, truly, _ = roc_curve(member.ravel(), score.ravel())
    each = [np.trapezoid(t, f) for f, t, _ in (roc_curve(y, s) for y, s in zip(member, score, strict=True))]
    at = [float(truly[falsely <= rate].max()) for rate in FALSE_POSITIVES]
    return Leak(float(np.trapezoid(truly, falsely)), float(np.std(each)), float(((truly + 1 - falsely) / 2).max()), *at)


def attacks(scores: Scores) -> dict[str, Leak]:
    """Every attack that the number of runs allows."""
    found = {"loss threshold": leak(scores.phi, scores.member)}
    if len(scores.phi) >= 6:  # two shadows of each kind
        found |= {f"LiRA {kind}": leak(lira(scores, online=kind == "online"), scores.member) for kind in ("online", "offline")}
    return found


def report(config: Config, runs: int) -> dict[str, Any]:
    """Everything about one setting, as it is written to its file."""
    found = gather(config, runs, tuple(POSITIONS))
    return {
        "runs": runs,
        "records": found["released"].phi.shape[1],
        "accuracy": {p: {"members": share(s, s.member), "held out": share(s, ~s.member)} for p, s in found.items()},
        "leaks": {p: {name: {k: round(v, 4) for k, v in a._asdict().items()} for name, a in attacks(s).items()} for p, s in found.items()},
    }


def share(scores: Scores, of: np.ndarray) -> float:
    """The share of the records ``of`` [M, R] whose true class gets more than 1/2, a bound on accuracy: who knows nothing tells nothing."""
    return round(float((scores.phi > 0)[of].mean()), 4)


def main(arguments: Sequence[str]) -> int:
    """``hyperfed attack membership method=fedper dataset=digits --runs 8 --out FILE``."""
    from hyperfed.main import check_overrides, compose_checked, composed_dict
    from hyperfed.report.runs import method_label

    parser = argparse.ArgumentParser("hyperfed attack membership", description="Membership inference on personalised models.")
    parser.add_argument(
        "--runs", type=int, default=8, help="federations; each is attacked in turn, from 6 on with the other pairs as shadows (default: 8)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    known, overrides = parser.parse_known_args(list(arguments))
    if known.runs < 1 or (known.runs % 2 and known.runs != 1):
        raise invalid("--runs", known.runs, "1 or an even number: runs come in pairs with opposite members")
    if known.out:
        writable("--out", known.out.parent)
        if known.out.is_dir():
            raise invalid("--out", str(known.out), "a file")
    check_overrides(overrides)
    composed = composed_dict(compose_checked(overrides))
    result = {"label": method_label(composed), "overrides": overrides, **report(make_config(composed), known.runs)}
    for position, found in result["leaks"].items():
        right = result["accuracy"][position]
        told = f"more than 1/2 for the true class: {right['members']:.3f} of members, {right['held out']:.3f} held out"
        print(f"{result['label']}, {position}: {told}")
        for name, a in found.items():
            print(
                f"  {name:<15} AUC {a['auc']:.3f} ± {a['deviation']:.3f}  balanced accuracy {a['balanced_accuracy']:.3f}"
                f"  TPR at 0.1 % FPR {a['tpr_at_01_percent']:.3f}, at 1 % {a['tpr_at_1_percent']:.3f}"
            )
    if known.out:
        write_json(known.out, result)
    return 0


if __name__ == "__main__":
    import sys

    from hyperfed.main import guarded

    sys.exit(guarded(lambda: main(sys.argv[1:])))
