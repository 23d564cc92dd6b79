"""Local: every client trains alone from the common initial model; nothing travels. The floor of most comparisons."""

from hyperfed.methods.fedavg import FedAvg


class Local(FedAvg):
    """No communication: each participant goes on training its own model."""

    scope = frozenset()
