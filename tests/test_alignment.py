"""States read from disk give the same bits as states never written."""

from pathlib import Path
from typing import NamedTuple

import torch

from hyperfed.engine.store import Store
from hyperfed.run.checkpoint import Saved, load, save


class Odd(NamedTuple):
    """Tensors whose sizes put their successors at odd addresses of a file."""

    flag: torch.Tensor
    weight: torch.Tensor
    tail: torch.Tensor


STATE = Odd(torch.tensor([True, False, True]), torch.arange(35.0).reshape(5, 7), torch.arange(3.0))


def test_what_is_read_back_lies_where_the_allocator_puts_it(tmp_path: Path) -> None:
    """64 bytes is the alignment of torch's CPU allocator; a matrix product peels its loops by it."""
    store = Store(tmp_path / "states", Odd)
    store.put(3, STATE, 1)
    versions = store.flush()
    store.restore(versions)
    save(tmp_path / "checkpoints", Saved(1, {}, 0.0, 0.0), STATE)
    _, server = load(tmp_path / "checkpoints" / "round-000001", Odd)
    for back in (store.get(3), server):
        assert back is not None
        for tensor, original in zip(back, STATE, strict=True):
            assert tensor.data_ptr() % 64 == 0
            assert torch.equal(tensor, original)
