"""Shamir's secret sharing (1979) of 32-byte secrets: any ``threshold`` shares give the secret, fewer say nothing of it."""

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33
SECRET_BYTES = 32


def split(secret: bytes, holders: Sequence[int], coefficients: Sequence[int]) -> dict[int, int]:
    """Holder -> the polynomial secret + c_1 x + c_2 x^2 + ... at x = holder + 1; ``threshold`` = coefficients + 1."""
    polynomial = (int.from_bytes(secret, "big"), *coefficients)
    shares = {}
    for holder in holders:
        value = 0
        for c in reversed(polynomial):
            value = (value * (holder + 1) + c) % PRIME
        shares[holder] = value
    return shares


def join(shares: Mapping[int, int]) -> bytes:
    """The secret: Lagrange's interpolation at 0."""
    total = 0
    for i, value in shares.items():
        top = bottom = 1
        for j in shares:
            if j != i:
                top = top * (j + 1) % PRIME
                bottom = bottom * (j - i) % PRIME
        total += value * top * pow(bottom, -1, PRIME)
    return (total % PRIME).to_bytes(SHARE_BYTES, "big")[-SECRET_BYTES:]
