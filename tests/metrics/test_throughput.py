"""Tokens per second of training."""

from __future__ import annotations

from lit_rlhf.metrics.throughput import Throughput


def test_throughput_leaves_pauses_out(monkeypatch):
    clock = iter([0.0, 2.0, 7.0, 4.0 + 5.0])  # made, paused, went on, asked: 4 seconds of training
    monkeypatch.setattr("lit_rlhf.metrics.throughput.time.monotonic", lambda: next(clock))
    throughput = Throughput()
    throughput.add(100)
    throughput.pause()
    throughput.go_on()
    throughput.add(20)
    assert throughput.rate() == 30.0
