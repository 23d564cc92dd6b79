"""Secure aggregation (Bonawitz et al., CCS 2017): the server learns the sum of the cohort's uploads, and no single one.

    y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)      mod 2^32,      s_uv: agreed by u and v (X25519)

In the sum the pairwise masks cancel. Every device shares b_u and its mask key among the cohort (Shamir), so that a threshold of those
who stay can take off the b_u of those who stay, and the pairwise masks of those who left; of nobody both.
Against a server that follows the protocol but is curious; the paper's extra round against one that lies to devices is not here.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from math import ceil
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hyperfed.core import UserError
from hyperfed.defences.shares import PRIME, SHARE_BYTES, join, split

LEAST = 3
"""The smallest cohort, and the fewest whose sum is unmasked: of the sum of two, each of them knows the other."""
Entropy = Callable[[str, int], bytes]
"""A purpose and a number of bytes -> so many random bytes."""


class Keys(NamedTuple):
    """What a device tells everyone: public keys for reading shares and for agreeing on masks, 32 bytes each."""

    shares: bytes
    masks: bytes


class Revealed(NamedTuple):
    """What a staying device hands to the server: shares of the b_u of those who stay, of the mask keys of those who left."""

    stayed: dict[int, int]
    left: dict[int, int]


def agree(own: X25519PrivateKey, other: bytes, purpose: str) -> bytes:
    """The 32-byte key two devices have for one purpose."""
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(SHA256(), 32, None, purpose.encode()).derive(shared)


def stream(key: bytes, n: int) -> np.ndarray:
    """PRG: n pseudo-random uint32 from AES-256 in counter mode; a key serves one round only."""
    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * n)), np.uint32)


def pair_mask(own: X25519PrivateKey, u: int, v: int, other: bytes, n: int) -> np.ndarray:
    """What device ``u`` adds on account of ``v``: the opposite of what ``v`` adds on account of ``u``."""
    mask = stream(agree(own, other, "masks"), n)
    return mask if u < v else np.negative(mask)


def _nonce(u: int, v: int) -> bytes:
    return u.to_bytes(6, "big") + v.to_bytes(6, "big")


class Device:
    """One client's side of one round."""

    def __init__(self, k: int, entropy: Entropy) -> None:
        self.k, self.entropy = k, entropy
        self._reads = X25519PrivateKey.from_private_bytes(entropy("shares", 32))
        self._masks = X25519PrivateKey.from_private_bytes(entropy("masks", 32))
        self._own = entropy("own mask", 32)
        self._answered = False

    def advertise(self) -> Keys:
        """Step 1: the public keys."""
        return Keys(self._reads.public_key().public_bytes_raw(), self._masks.public_key().public_bytes_raw())

    def share(self, keys: Mapping[int, Keys], threshold: int) -> dict[int, bytes]:
        """Step 2: for every other device its shares of both secrets, sealed for it alone."""
        self.keys = keys
        halves = []
        for purpose, secret in (("share own", self._own), ("share masks", self._masks.private_bytes_raw())):
            drawn = self.entropy(purpose, 64 * (threshold - 1))
            coefficients = [int.from_bytes(drawn[64 * i : 64 * i + 64], "big") % PRIME for i in range(threshold - 1)]
            halves.append(split(secret, list(keys), coefficients))
        own, masks = halves
        self.held = {self.k: (own[self.k], masks[self.k])}
        return {
            v: self._box(v).encrypt(_nonce(self.k, v), own[v].to_bytes(SHARE_BYTES, "big") + masks[v].to_bytes(SHARE_BYTES, "big"), None)
            for v in keys
            if v != self.k
        }

    def _box(self, v: int) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(agree(self._reads, self.keys[v].shares, "shares"))

    def receive(self, sealed: Mapping[int, bytes]) -> None:
        """Step 2, other side: open the shares of the others; a forged one raises InvalidTag."""
        for u, box in sealed.items():
            text = self._box(u).decrypt(_nonce(u, self.k), box, None)
            self.held[u] = (int.from_bytes(text[:SHARE_BYTES], "big"), int.from_bytes(text[SHARE_BYTES:], "big"))

    def mask(self, x: np.ndarray) -> np.ndarray:
        """Step 3: y_u of x_u, uint32 [n]."""
        y = x + stream(self._own, len(x))
        for v, keys in self.keys.items():
            if v != self.k:
                y += pair_mask(self._masks, self.k, v, keys.masks, len(x))
        return y

    def reveal(self, stayed: set[int]) -> Revealed:
        """Step 4: one half of each device's shares, once: both halves of one device would lay its upload open."""
        assert not self._answered, "a device answers once a round"
        self._answered = True
        return Revealed(
            {u: own for u, (own, _) in self.held.items() if u in stayed}, {u: m for u, (_, m) in self.held.items() if u not in stayed}
        )


class Cohort:
    """One round's protocol among ``ids``, every device in this process; ``traffic`` counts its bytes by (client, direction)."""

    def __init__(self, ids: list[int], share: float, entropy: Callable[[int], Entropy]) -> None:
        self.threshold = max(LEAST, ceil(share * len(ids)))
        self.traffic: Counter[tuple[int, str]] = Counter()
        self.devices = {k: Device(k, entropy(k)) for k in ids}
        self.keys = {k: d.advertise() for k, d in self.devices.items()}
        size = sum(map(len, self.keys[ids[0]]))
        sealed = {k: d.share(self.keys, self.threshold) for k, d in self.devices.items()}
        for v, device in self.devices.items():
            mine = {u: boxes[v] for u, boxes in sealed.items() if u != v}
            device.receive(mine)
            self.traffic[v, "up"] += size + sum(map(len, sealed[v].values()))
            self.traffic[v, "down"] += size * (len(ids) - 1) + sum(map(len, mine.values()))

    def unmask(self, masked: Mapping[int, np.ndarray]) -> np.ndarray:
        """The server's part: the sum of x_u over those who stayed, uint32 [n]. UserError where too few did."""
        if len(masked) < self.threshold:
            raise UserError(
                f"secure aggregation: {len(masked)} of {len(self.devices)} clients stayed to the end of the round, but {self.threshold} "
                "are needed to take off the masks; resume the run when the clients are back"
                + (", or lower privacy.threshold in a new one." if self.threshold > LEAST else ".")
            )
        stayed = set(masked)
        answers = {k: self.devices[k].reveal(stayed) for k in sorted(stayed)}
        for k, answer in answers.items():
            self.traffic[k, "down"] += 4 * len(stayed)
            self.traffic[k, "up"] += SHARE_BYTES * (len(answer.stayed) + len(answer.left))
        some = sorted(stayed)[: self.threshold]
        total: np.ndarray = sum(masked.values(), np.zeros_like(next(iter(masked.values()))))
        for u in stayed:
            total -= stream(join({k: answers[k].stayed[u] for k in some}), len(total))
        for gone in set(self.devices) - stayed:
            key = X25519PrivateKey.from_private_bytes(join({k: answers[k].left[gone] for k in some}))
            for v in stayed:  # what the one who left would have added on account of v is the opposite of what v added
                total += pair_mask(key, gone, v, self.keys[v].masks, len(total))
        return total
