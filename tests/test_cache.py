"""The cache of decoded data sets: mapped the second time, checked, rebuilt where damaged, never half there."""

import os
from pathlib import Path

import numpy as np
import pytest

from hyperfed.core.errors import UserError
from hyperfed.data import load_dataset, sources, verify_cache
from small_sets import LABELS, TRAIN, write_idx


def test_the_second_start_maps_the_cache_and_decodes_nothing(root, tmp_path, monkeypatch):
    first = load_dataset("cifar10", root, tmp_path / "cache")
    monkeypatch.setattr(sources, "fill_all", lambda *_: pytest.fail("decoded again"))
    second = load_dataset("cifar10", str(root), str(tmp_path / "cache"))
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert second.labels.flags.writeable, "torch warns about arrays that are read-only"
    assert np.array_equal(first.images, second.images) and (first.mean, first.std) == (second.mean, second.std)
    assert verify_cache("cifar10", root, tmp_path / "cache") == Path(second.images.filename).parent


def test_caches_of_different_sources_are_kept_apart(root, tmp_path):
    cache = tmp_path / "cache"
    before = load_dataset("mnist", root, cache)
    write_idx(root / "mnist" / "train-labels-idx1-ubyte.gz", LABELS[:TRAIN][::-1])
    changed = load_dataset("mnist", root, cache)
    assert np.array_equal(changed.labels[:TRAIN], LABELS[:TRAIN][::-1]) and np.array_equal(before.labels, LABELS)
    moved = root.rename(tmp_path / "elsewhere")
    load_dataset("mnist", moved, cache)
    assert len(list(cache.iterdir())) == 3


def test_the_default_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERFED_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tmp_path / "own" in Path(load_dataset("digits").images.filename).parents
    monkeypatch.delenv("HYPERFED_CACHE")
    assert tmp_path / "xdg" / "hyperfed" in Path(load_dataset("digits").images.filename).parents


@pytest.mark.parametrize("damage", ["truncate images", "truncate labels", "no meta", "broken meta", "other shape", "empty"])
def test_a_damaged_cache_is_prepared_again(damage, tmp_path, caplog):
    folder = Path(load_dataset("digits", cache=tmp_path).images.filename).parent
    images, labels, meta = (folder / file for file in ("images.npy", "labels.npy", "meta.json"))
    if damage.startswith("truncate"):
        os.truncate(images if "images" in damage else labels, 1000)
    elif damage == "other shape":
        np.save(labels, np.zeros(5, np.int64))
    elif damage == "empty":
        for file in (images, labels, meta):
            file.unlink()
    else:
        meta.unlink() if damage == "no meta" else meta.write_text(meta.read_text()[:40])
    with pytest.raises(UserError, match="holds no complete copy of 'digits'"):
        verify_cache("digits", cache=tmp_path)
    assert load_dataset("digits", cache=tmp_path).images.shape == (1797, 8, 8, 1)
    assert "is damaged" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [verify_cache("digits", cache=tmp_path).name]


def test_verify_finds_a_single_flipped_bit(tmp_path):
    path = Path(load_dataset("digits", cache=tmp_path).images.filename)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"images\.npy is damaged \(its SHA-256 is [0-9a-f]{16}"):
        verify_cache("digits", cache=tmp_path)


def test_verify_without_a_cache(tmp_path):
    with pytest.raises(UserError, match="holds no complete copy of 'digits'"):
        verify_cache("digits", cache=tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_no_half_cache(error, root, tmp_path, monkeypatch):
    save, cache = np.save, tmp_path / "cache"

    def interrupted(path, array):
        save(path, array)
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(sources.np, "save", interrupted)
        load_dataset("mnist", root, cache)
    assert list(cache.iterdir()) == []
    assert np.array_equal(load_dataset("mnist", root, cache).labels, LABELS)


def test_what_a_killed_process_left_is_never_used_and_is_removed_in_time(tmp_path):
    folder = Path(load_dataset("digits", cache=tmp_path).images.filename).parent
    old, new = tmp_path / f".{folder.name}.old", tmp_path / f".{folder.name}.new"
    folder.rename(old)
    (old / "meta.json").unlink()
    new.mkdir()
    os.utime(old, (0, 0))
    load_dataset("digits", cache=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, new.name}


def test_two_that_prepare_at_once(root, tmp_path, monkeypatch):
    fill, cache, calls = sources.fill_all, tmp_path / "cache", []

    def overtaken(*args):
        calls.append(1)
        if len(calls) == 1:
            load_dataset("mnist", root, cache)
        fill(*args)

    monkeypatch.setattr(sources, "fill_all", overtaken)
    assert np.array_equal(load_dataset("mnist", root, cache).labels, LABELS)
    assert len(calls) == 2 and len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^data\.cache: .*file cannot be written"):
        load_dataset("digits", cache=tmp_path / "file")
