"""What is shown of how far a run is."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lit_rlhf.callbacks import progress
from lit_rlhf.callbacks.progress import Meter, Progress, Trend
from lit_rlhf.metrics.phases import Phases


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: ``clock[0] = seconds``."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_gets_one_live_line_and_anything_else_a_line_now_and_then(clock):
    out = io.StringIO()
    meter = Meter("training", 10, 0, seconds_between_lines=5, console=Console(file=out, width=100))
    for done in range(1, 11):
        clock[0] += 2
        meter.move(done, {"train/loss": 1.0})
    meter.close()
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "training 3/10",
        "training 6/10",
        "training 9/10",
        "training 10/10",
    ]
    terminal = io.StringIO()
    meter = Meter("training", 10, 0, 5, Console(file=terminal, force_terminal=True, width=100))
    meter.move(10, {})
    meter.close()
    assert "training 10/10" in terminal.getvalue()


def shown(width, metrics):
    """The lines that a terminal of so many columns has, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    meter = Meter("training", 56, 0, 5, console)
    meter.move(19, {f"rollout/{name}": 1.0 for name in metrics})
    meter.close()
    with console.capture() as capture:
        console.print(meter._line())
    return capture.get().rstrip().split("\n")


def test_a_narrow_terminal_has_the_metrics_below_the_bar(clock):
    (line,) = shown(120, ["score", "kl"])
    assert line.rstrip().endswith(
        "training 19/56  0:00 < 0:00  rollout score 1 \N{RIGHTWARDS ARROW}  rollout kl 1 \N{RIGHTWARDS ARROW}"
    )
    first, second = shown(72, ["score", "kl"])
    assert first.rstrip().endswith("training 19/56  0:00 < 0:00")
    assert second.startswith("rollout score 1")
    lines = shown(72, ["score", "kl", "entropy", "finished", "length"])  # more than fits is cut, never broken
    assert len(lines) == 2
    assert lines[1].rstrip().endswith("\N{HORIZONTAL ELLIPSIS}")
    assert max(map(len, lines)) <= 72


def test_time_left_counts_from_where_a_resumed_run_began(clock):
    meter = Meter("training", 100, 40, 1e9, Console(file=io.StringIO()))
    clock[0] = 60.0
    meter.move(60, {})
    assert meter.text() == "training 60/100  1:00 < 2:00"


def test_an_unknown_total_shows_no_time_left(clock):
    meter = Meter("training", None, 0, 1e9, Console(file=io.StringIO()))
    clock[0] = 3725.0
    meter.move(7, {})
    assert meter.text() == "training 7  1:02:05"


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        ([1.0, 0.9, 0.7, 0.5], "\N{SOUTH EAST ARROW}"),
        ([1.0, 2.0], "\N{NORTH EAST ARROW}"),
        ([1.0, 1.0], "\N{RIGHTWARDS ARROW}"),
    ],
)
def test_trend(values, arrow):
    trend = Trend()
    for value in values:
        trend.add(value)
    assert str(trend).endswith(arrow)


def test_under_a_trainer(train, policy, capsys):
    train(policy(), Progress(seconds_between_lines=0), enable_progress_bar=True, num_sanity_val_steps=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("validation before training 1/1")
    training = [line for line in lines if line.startswith("training")]
    assert re.match(r"training 1/3  0:00.*  loss [\d.]+ \N{RIGHTWARDS ARROW}$", training[0])
    assert training[-1].startswith("training 3/3")


@pytest.mark.parametrize(
    ("options", "total"), [({"max_steps": 2, "max_epochs": -1}, 2), ({"accumulate_grad_batches": 2}, 2)]
)
def test_steps_in_all(options, total, train, policy, capsys):
    train(policy(), Progress(0), enable_progress_bar=True, **options)
    assert f"training 1/{total}" in capsys.readouterr().out


def test_a_disabled_bar_says_nothing(train, policy, capsys):
    bar = Progress(0)
    bar.disable()
    train(policy(), bar, enable_progress_bar=True)
    assert "training" not in capsys.readouterr().out


def test_the_line_ends_before_an_error(train, policy):
    bar = Progress(1e9)
    with pytest.raises(KeyError):
        train(policy(1, KeyError("x")), bar, enable_progress_bar=True)
    assert bar._meter is None


def test_iterations_are_counted_not_optimizer_steps(iterate, rollouts, capsys):
    iterate(rollouts(), Progress(0), enable_progress_bar=True, max_epochs=2)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "," not in line] == [f"training {n}/6" for n in (1, 2, 3, 4, 5, 6, 6)]


def test_optimizer_steps_do_not_say_how_many_iterations_there_will_be(iterate, rollouts, capsys):
    iterate(rollouts(), Progress(0), enable_progress_bar=True, max_epochs=-1, max_steps=4)
    assert capsys.readouterr().out.splitlines()[-1].startswith("training 2  0:0")


def test_a_plain_line_names_the_phase(iterate, rollouts, capsys):
    iterate(rollouts(), Progress(0), enable_progress_bar=True, num=1)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        *("training 0/1, rollout", "training 0/1, rollout 3/3", "training 0/1, update", "training 1/1", "training 1/1")
    ]


def test_a_live_line_names_the_phase(clock):
    terminal, phases = io.StringIO(), Phases()
    meter = Meter("training", 10, 3, 5, Console(file=terminal, force_terminal=True, width=100), phases)
    with phases("score"):
        meter._live.refresh()
    meter.close()
    shown = terminal.getvalue()
    assert shown.index("training 3/10, score") < shown.rindex("training 3/10  0:00")


def test_the_phases_of_the_next_run_are_not_watched_by_the_last(iterate, rollouts):
    module = rollouts()
    iterate(module, Progress(1e9), enable_progress_bar=True)
    assert module.phases.watcher is None


def test_a_resumed_run_counts_on(iterate, rollouts, tmp_path, capsys):
    iterate(rollouts(), max_epochs=1).save_checkpoint(tmp_path / "cut.ckpt")
    capsys.readouterr()
    iterate(rollouts(), Progress(0), enable_progress_bar=True, max_epochs=2, ckpt_path=tmp_path / "cut.ckpt")
    assert capsys.readouterr().out.startswith("training 3/6, rollout")
