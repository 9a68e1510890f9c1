"""The example of modules of one's own runs as a user runs it, and both of them learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_modules_learn(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_module.py"), "--steps", "16"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    losses = {}
    for line in done.stdout.splitlines():
        if ": loss " in line:
            name, _, values = line.partition(": loss ")
            losses[name] = [float(value) for value in values.split(" -> ")]
    assert set(losses) == {"Imitation", "Thumbs"}
    assert losses["Thumbs"][0] == 0.693  # the policy begins as the reference
    assert all(last < first for first, last in losses.values())
