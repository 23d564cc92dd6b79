"""FedProx (Li et al., MLSys 2020): FedAvg with the local objective h_k(w; w_t) = F_k(w) + mu / 2 ||w - w_t||^2.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, equation 2 and Algorithm 2.
"""

from dataclasses import dataclass

from torch import Tensor

from hyperfed.core import Objective, Over, Params, Role, Step, invalid, select
from hyperfed.core.tree import sqdist
from hyperfed.methods.fedavg import FedAvg, Personal, Shared


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg whose clients are held near the model they received."""

    mu: float = 0.01

    def __post_init__(self) -> None:
        if not self.mu >= 0:
            raise invalid("method.mu", self.mu, "a number >= 0")

    def objective(self, state: Personal, down: Shared) -> Objective:
        return Over(self.h, (select(down.shared, self.model.roles, self.shared_scope - {Role.STATS}),))

    def h(self, step: Step, w_t: Params) -> Tensor:
        """h_k(w; w_t)."""
        return step.loss + self.mu / 2 * sqdist(step.params, w_t)
