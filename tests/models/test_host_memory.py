"""That freed memory stays with the process, and where it does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lit_rlhf.models import host_memory

FREED = """
import resource, sys
import torch
from lit_rlhf.models.host_memory import keep_freed_memory

def faults_of_a_pass():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(2**20) for _ in range(24)]  # 4 MiB each, all freed at the end
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory() == (sys.argv[1] == "kept")
faults = [faults_of_a_pass() for _ in range(5)]
print(faults[-1] < faults[0] / 4)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is that of glibc")
@pytest.mark.parametrize(
    ("setting", "is_kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}, False),
    ],
)
def test_a_later_pass_finds_the_memory_of_the_first(setting, is_kept):
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in names} | setting
    command = [sys.executable, "-c", FREED, "kept" if is_kept else "handed back"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(is_kept), done.stderr


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_as_they_are(platform, monkeypatch):
    monkeypatch.setattr(host_memory.sys, "platform", platform)
    assert not host_memory.keep_freed_memory()


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed_memory()


def test_a_backbone_on_a_cpu_keeps_it(build, monkeypatch):
    asked = []
    monkeypatch.setattr("lit_rlhf.models.backbone.keep_freed_memory", lambda: asked.append(True))
    backbone = build()
    backbone.prepare()
    backbone.prepare()
    assert asked == [True]
