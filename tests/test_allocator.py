"""Freed memory stays with the process: page faults are counted, never time."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = 20
PROGRAM = f"""
import resource, sys
import torch
from hyperfed.engine.allocator import keep_memory

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_memory()

def step():  # what a forward and backward pass does: eight activations of 4 MB, all freed at its end
    return [torch.ones(1024, 1024) for _ in range(8)]

step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str, **environment: str) -> float:
    """Page faults of one step in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**clean, **environment})
    return int(done.stdout) / STEPS


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_a_step_reuses_the_memory_of_the_last() -> None:
    assert faults("keep") < 50 < faults("leave") / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_the_users_own_settings_stand() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072") > 2000
    assert faults("keep", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072:glibc.malloc.mmap_threshold=131072") > 2000
