"""The registry of methods: one row each."""

from typing import Any

from hyperfed.core import Method
from hyperfed.methods.centre import Centre
from hyperfed.methods.fedavg import FedAvg
from hyperfed.methods.fedbabu import FedBABU
from hyperfed.methods.fedbn import FedBN
from hyperfed.methods.feddyn import FedDyn
from hyperfed.methods.fedfomo import FedFomo
from hyperfed.methods.fedgen import FedGen
from hyperfed.methods.fedper import FedPer
from hyperfed.methods.fedprox import FedProx
from hyperfed.methods.fedrep import FedRep
from hyperfed.methods.lgfedavg import LGFedAvg
from hyperfed.methods.local import Local
from hyperfed.methods.perfedavg import PerFedAvg
from hyperfed.methods.pfedhn import PFedHN, PFedHNPC
from hyperfed.methods.pfedla import PFedLA
from hyperfed.methods.pfedsim import PFedSim

METHODS: dict[str, type[Method[Any, Any, Any, Any]]] = {
    "fedavg": FedAvg,
    "local": Local,
    "centre": Centre,
    "fedprox": FedProx,
    "feddyn": FedDyn,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "fedbn": FedBN,
    "lgfedavg": LGFedAvg,
    "perfedavg": PerFedAvg,
    "fedgen": FedGen,
    "pfedsim": PFedSim,
    "pfedla": PFedLA,
    "fedfomo": FedFomo,
    "pfedhn": PFedHN,
    "pfedhn_pc": PFedHNPC,
}
