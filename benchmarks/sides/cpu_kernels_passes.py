"""Forward and backward passes of a small model, one for each line that comes in; its processor seconds go out.

    python benchmarks/sides/cpu_kernels_passes.py kept|returned ARCH

Two batches of different lengths by turns, as training has; freed memory is kept, or handed back as the C library does.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from proxy_model import make_model

from lit_rlhf.models import backbone as backbone_file
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import BackboneConfig
from lit_rlhf.types import Forest, Segment

LENGTHS, ROWS, RESPONSE = (150, 190), 16, 24


def main() -> None:
    """Make a model and answer."""
    way, arch = sys.argv[1:]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_model(arch, "float32", "cpu", Path(folder))
        backbone = build_backbone(BackboneConfig(folder))
    with nullcontext() if way == "kept" else patch.object(backbone_file, "keep_freed_memory"):
        backbone.prepare()
    forests = [Forest.pack([text(length)] * ROWS) for length in LENGTHS]
    for _ in sys.stdin:
        begin = time.process_time()
        for forest in forests:
            backbone.token_logprobs(forest).logprobs.sum().backward()
            backbone.zero_grad()
        print(time.process_time() - begin, flush=True)


def text(length: int) -> list[Segment]:
    """A prompt with a response."""
    return [Segment([7] * length, [False] * (length - RESPONSE) + [True] * RESPONSE)]


if __name__ == "__main__":
    main()
