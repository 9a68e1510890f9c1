"""What an iteration is doing, for how long, and how fast."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.metrics import phases as module
from lit_rlhf.metrics.phases import HasPhases, Phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: ``clock[0] = seconds``."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_seconds_and_tokens_per_second_then_all_begins_anew(clock):
    phases = Phases()
    with phases("rollout"):
        phases.count("rollout", 30)
        clock[0] += 2
    clock[0] += 100  # between phases nobody counts
    with phases("update"):
        clock[0] += 3
        phases.count("train", 60)
    with phases("rollout"):
        clock[0] += 1
    assert phases.report() == {
        "time/rollout": 3.0,
        "time/update": 3.0,
        "rollout/tokens_per_second": 10.0,
        "train/tokens_per_second": 20.0,
    }
    assert phases.report() == {}
    with phases("rollout"):
        clock[0] += 1
    assert phases.report() == {"time/rollout": 1.0}
    assert phases.totals == {"rollout": 4.0, "update": 3.0}, "which a report does not touch"


def test_what_is_on_and_how_far_it_is():
    phases, seen = Phases(), []
    phases.watcher = lambda: seen.append(str(phases.now))
    with phases("rollout"):
        phases.progress(0, 8)
        phases.progress(8, 8)
    with phases("score"):
        assert phases.now.name == "score"
    assert phases.now is None
    assert seen == ["rollout", "rollout 0/8", "rollout 8/8", "score"]


def test_phases_follow_one_another(clock):
    phases = Phases()
    with pytest.raises(ValueError, match="'score' begins inside phase 'rollout'"), phases("rollout"), phases("score"):
        pass
    assert phases.now is None
    with phases("score"):
        clock[0] += 1
    assert phases.report() == {"time/score": 1.0}, "what was broken off is not measured"


def test_tokens_of_a_phase_that_was_broken_off_have_no_rate(clock):
    phases = Phases()
    with pytest.raises(TypeError), phases("rollout"):
        phases.count("rollout", 3)(4)
    assert phases.report() == {}


@pytest.mark.parametrize("call", [lambda phases: phases.progress(1, 2), lambda phases: phases.count("rollout", 2)])
def test_outside_a_phase_there_is_nothing_to_count_for(call):
    with pytest.raises(ValueError, match="no phase"):
        call(Phases())


def test_a_gpu_is_waited_for_at_the_borders_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    phases = Phases()
    with phases("rollout"):
        assert len(waited) == 1
        phases.progress(1, 2)
        phases.count("rollout", 3)
        assert len(waited) == 1
    assert len(waited) == 2


def test_who_has_phases():
    class Iterated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.phases = Phases()

    assert isinstance(Iterated(), HasPhases)
    assert not isinstance(torch.nn.Linear(1, 1), HasPhases)
