"""From a defence's settings to its guard; pairs that make no sense are refused in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from hyperfed.core import Method, Role, UserError, flatten
from hyperfed.core.codec import fields
from hyperfed.defences import accountant
from hyperfed.defences.dp import CentralNoise, LocalNoise, Schedule
from hyperfed.defences.settings import DEFENCES, Budget, CentralDP, ClientDP, SecAgg
from hyperfed.engine.guard import Guard
from hyperfed.engine.probe import Played, Weighting, pretend, summable
from hyperfed.engine.round import sample
from hyperfed.engine.workspace import Local


@dataclass(frozen=True)
class Setting:
    """What of a run its defence depends on. ``examples``: training examples of each client [N]."""

    method: Method[Any, Any, Any, Any]
    name: str
    rounds: int
    participation: float
    seed: int
    local: Local
    examples: Sequence[int]

    def cohort(self, number: int) -> list[int]:
        """Who takes part in round ``number``."""
        return sample(number, self.method.num_clients, self.participation, self.seed)

    def schedule(self) -> Schedule:
        """Every round's cohort."""
        return Schedule(self.method.num_clients, [self.cohort(n + 1) for n in range(self.rounds)])

    def weighting(self, why: str) -> Weighting:
        """The mean the method's server needs, all through the run. Refused where it needs the uploads one by one."""
        ways = {summable(self.method, number) for number in (1, self.rounds)}
        way = ways.pop()
        if way is None or ways:
            raise UserError(
                f"{why} shows the server a sum of uploads only, but the server of method {self.name!r} needs every client's own."
            )
        return way


def make_guard(settings: Budget | SecAgg | None, setting: Setting) -> Guard:
    """The guard of a run; without settings the one that lets everything pass."""
    if settings is None:
        return Guard()
    label = next(f"privacy={name}" for name, kind in DEFENCES.items() if kind is type(settings))
    if setting.method.pooled:
        raise UserError(f"{label} protects clients, but method {setting.name!r} pools the data of all of them.")
    played = pretend(setting.method, 2, (8, 8, 8)[: setting.method.num_clients])
    if not flatten(played.ups[0]) and not _trains_privately(settings):
        raise UserError(f"{label} protects uploads, but method {setting.name!r} has none.")
    if isinstance(settings, SecAgg):
        return _masked(settings, setting, label)
    accountant.required()
    if settings.secret:
        _cryptography(label)
    if _trains_privately(settings):
        return _private_training(settings, setting, played, label)
    for field, kind in fields(type(played.ups[0])).items():
        if kind is Tensor:
            raise UserError(f"{label} puts noise on weights, but method {setting.name!r} also uploads {field!r}, which is no weight.")
    roles = dict(setting.method.model.roles)
    if isinstance(settings, CentralDP):
        setting.weighting(label)
        return CentralNoise(settings, setting.schedule(), setting.seed, roles)
    return LocalNoise(settings, setting.schedule(), setting.seed, roles)


def _trains_privately(settings: Budget | SecAgg) -> bool:
    return isinstance(settings, Budget) and not isinstance(settings, ClientDP | CentralDP)


def _private_training(settings: Any, setting: Setting, played: Played, label: str) -> Guard:
    from hyperfed.defences.dp_sgd import RecordNoise

    model, client = setting.method.model, played.clients[0]
    if Role.STATS in model.roles.values():
        raise UserError(
            f"{label} needs a gradient per example, but batch norm mixes the examples of a batch: use model=resnet_gn, cnn or mlp."
        )
    if client.reads:
        raise UserError(
            f"{label} puts noise on gradients, but method {setting.name!r} also uses {client.reads[0]} of the data, without noise."
        )
    return RecordNoise(settings, setting.schedule(), list(setting.examples), setting.local, client.fits)


def _masked(settings: SecAgg, setting: Setting, label: str) -> Guard:
    _cryptography(label)
    from hyperfed.defences.masked import Masked
    from hyperfed.defences.secagg import LEAST

    if (size := len(setting.cohort(1))) < LEAST:
        raise UserError(f"{label} needs a cohort of at least {LEAST} clients, but participation = {setting.participation:g} gives {size}.")
    return Masked(settings, setting.cohort, list(setting.examples), setting.weighting(label), setting.seed)


def _cryptography(label: str) -> None:
    if find_spec("cryptography") is None:
        raise UserError(f"{label} needs the extra: pip install 'hyperfed[privacy]'.")
