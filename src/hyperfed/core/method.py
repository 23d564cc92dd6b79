"""The interface of a federated algorithm: pure functions over four NamedTuples."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from hyperfed.core.types import ALL, Client, Model, Params, Round, Scope, select

S = TypeVar("S")
C = TypeVar("C")
D = TypeVar("D")
U = TypeVar("U")


@dataclass(frozen=True)
class Method(ABC, Generic[S, C, D, U]):
    """One federated algorithm. Holds hyper-parameters, never a tensor.

    Four NamedTuples: server state S, client state C, download D, upload U. The server never sees a C; a client sees others
    only through its D; what travels of the model is ``scope & model.communicable``.
    """

    model: Model
    num_clients: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense. Here, so that also subclasses without fields of their own have theirs called."""

    scope: ClassVar[Scope] = ALL
    """The roles this method shares."""

    revision: ClassVar[int] = 1
    """Raised with every change that changes this method's numbers: runs of two revisions are not put into one table."""

    pooled: ClassVar[bool] = False
    """Whether one trainer holds the data of all clients (Centre)."""

    @property
    def validation(self) -> float:
        """The fixed share of its training data that each client holds out of ``fit`` for ``mean_loss``."""
        return 0.0

    @property
    def shared_scope(self) -> Scope:
        """The roles that really travel."""
        return self.scope & self.model.communicable

    def shared(self, params: Params) -> Params:
        """The part of a model that travels."""
        return select(params, self.model.roles, self.shared_scope)

    def personal(self, params: Params) -> Params:
        """The part of a model that never leaves the device."""
        return select(params, self.model.roles, ALL - self.shared_scope)

    @abstractmethod
    def init_server(self, params: Params) -> S:
        """The server's state before round 1, from the common initial model."""

    @abstractmethod
    def init_client(self, params: Params) -> C:
        """A client's state before its first round, from its initial model. Never leaves the device."""

    @abstractmethod
    def download(self, server: S, rnd: Round, k: int) -> D:
        """What client ``k`` receives."""

    @abstractmethod
    def client_update(self, client: Client, state: C, down: D) -> tuple[C, U]:
        """What a participating client does; returns its new state and its upload."""

    def unpack(self, k: int, up: U) -> U:
        """Client ``k``'s upload, in the shape all uploads share: for methods whose clients send parts of different sizes."""
        return up

    @abstractmethod
    def server_update(self, server: S, rnd: Round, up: U) -> S:
        """The new server state. Every leaf of ``up`` has a leading K >= 1, in the order of ``rnd.ids``."""

    @abstractmethod
    def personalize(self, state: C, down: D) -> Params:
        """The model client k would deploy now: the very thing that is evaluated."""

    def finetune(self, client: Client, params: Params, epochs: int, train: Scope = ALL) -> Params:
        """Local epochs on the plain loss after the federation; ``train`` is the run's ``finetune.scope``."""
        return client.fit(params, train=train, epochs=epochs)
