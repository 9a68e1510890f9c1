"""Work to seconds."""

from __future__ import annotations

import pytest

from lit_rlhf.estimating.flops import Work
from lit_rlhf.estimating.gpus import Device
from lit_rlhf.estimating.times import READING, UTILISATION, seconds

CARD = Device("card", 10, 100, 2)


def test_computing_takes_its_share_of_the_peak():
    assert seconds(Work({"step": 1e14}, 0.0, 1, None), CARD) == {"step": pytest.approx(1 / UTILISATION)}


def test_drawing_takes_the_longer_of_reading_and_computing():
    work = Work({"rollout": 1e12, "update": 1e14}, 4e12, 1, None)
    assert seconds(work, CARD)["rollout"] == pytest.approx(2 / READING)
    assert seconds(work._replace(decode_bytes=1.0), CARD)["rollout"] == pytest.approx(0.01 / UTILISATION)
