"""Defences: differential privacy and secure aggregation as layers around the messages of every method."""

from hyperfed.defences.build import Setting, make_guard
from hyperfed.defences.settings import DEFENCES, Budget, CentralDP, ClientDP, DpSgd, SecAgg

__all__ = ["DEFENCES", "Budget", "CentralDP", "ClientDP", "DpSgd", "SecAgg", "Setting", "make_guard"]
