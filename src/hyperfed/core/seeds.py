"""Randomness without hidden state: every draw names its purpose, round and client, so resuming needs no generator state."""

import hashlib

import torch


def derive_seed(base: int, purpose: str, *parts: int) -> int:
    """A 63-bit seed from the run's seed, a purpose and any number of integers (round, client, ...).

    torch's generator on the CPU makes use of the low 32 bits only: of n draws about n^2 / 2^33 pairs share their numbers, 0.01 of 10,000.
    That does no harm to a simulation; secrets are not drawn so.
    """
    text = f"{base}/{purpose}/" + "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(base: int, purpose: str, *parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose."""
    return torch.Generator(device).manual_seed(derive_seed(base, purpose, *parts))
