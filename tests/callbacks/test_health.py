"""Warnings in words, once per episode, and runs that stop by themselves."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_rlhf.callbacks import health
from lit_rlhf.callbacks.bands import DEFAULT_BANDS, Band, Limit
from lit_rlhf.callbacks.checkpoints import IterationCheckpoint
from lit_rlhf.callbacks.health import HealthBands


@pytest.fixture
def said(monkeypatch):
    """All lines that health bands print."""
    lines = []
    monkeypatch.setattr(health, "_say", lambda text, is_bad=True: lines.append(text))
    return lines


def far(**options):
    return Band("the KL is high", [Limit("rollout/kl", above=5.0)], "Raise kl_coef.", **options)


def kls(*values):
    return [{"rollout/kl": value} for value in values]


def test_once_per_episode(iterate, rollouts, said):
    bands = HealthBands([far(patience=2)])
    iterate(rollouts(kls(1, 9, 1, 8, 9, 9, 1, 9, 9, 1, 1, 9, 9, 9)), bands, num=14)
    assert said == [
        "iteration 5: the KL is high: rollout/kl is 9 (above 5). Raise kl_coef.",
        "No longer: the KL is high",
        "iteration 13: the KL is high: rollout/kl is 9 (above 5). Raise kl_coef.",
    ]
    assert len(bands.warnings) == 2


def test_only_what_is_logged_anew_counts(iterate, rollouts, said):
    class Seldom(rollouts):
        def log_dict(self, metrics):
            if self.iterations[-1] % 4 == 0:
                super().log_dict(metrics)

    iterate(Seldom(kls(*[9] * 8)), HealthBands([far(patience=3)]), num=8)
    assert said == []
    iterate(Seldom(kls(*[9] * 12)), HealthBands([far(patience=3)]), num=12)
    assert len(said) == 1


def test_stop_ends_the_run_and_names_the_way_back(iterate, rollouts, said, tmp_path):
    module = rollouts(kls(1, 1, 9, 9, 9, 9))
    keep = IterationCheckpoint(tmp_path)
    iterate(module, HealthBands([far(patience=2)], action="stop"), keep, num=6, enable_checkpointing=True)
    assert module.iterations == [0, 1, 2, 3]
    assert said[1] == f"The run stops here. A state from before: --ckpt_path={tmp_path / 'iteration-2.ckpt'}"
    assert (tmp_path / "iteration-2.ckpt").is_file()


def test_without_a_checkpoint_it_says_so(iterate, rollouts, said):
    module = rollouts(kls(9, 9, 9))
    iterate(module, HealthBands([far(patience=1)], action="stop"))
    assert module.iterations == [0]
    assert said[1] == "The run stops here. No checkpoint was saved before."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_said_of_any_metric(value, iterate, rollouts, said):
    logged = [{"train/own": x} for x in (1.0, value, value, 1.0, value)]
    iterate(rollouts(logged), HealthBands(), num=5)
    assert [line.split(". ")[0] for line in said] == [
        f"iteration 2: train/own is {value}",
        f"iteration 5: train/own is {value}",
    ]


def test_what_is_not_a_number_does_not_spoil_what_follows(iterate, rollouts, said):
    band = Band("the KL grew", [Limit("rollout/kl", above=5.0, view="of_beginning")], "Raise it.", patience=1)
    iterate(rollouts(kls(float("nan"), 1, 1, 1, 9)), HealthBands([band]), num=5)
    assert said[-1].startswith("iteration 5: the KL grew")


@pytest.mark.parametrize("fails_at", range(1, 8))
def test_a_resumed_run_neither_forgets_nor_repeats(fails_at, iterate, rollouts, said, tmp_path):
    class Killed(rollouts):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if self.iterations[-1] == fails_at:
                raise KeyError

    def bands():
        watched.append(HealthBands([far()]))
        return watched[-1], IterationCheckpoint(tmp_path)

    watched, logged = [], kls(1, 1, 9, 9, 9, 9, 9, 9)
    options = {"num": 8, "enable_checkpointing": True}
    iterate(rollouts(logged), *bands(), **options)
    said.clear()
    with pytest.raises(KeyError):
        iterate(Killed(logged), *bands(), **options)
    iterate(rollouts(logged), *bands(), ckpt_path="last", **options)
    whole, _, again = watched
    assert again.state_dict() == whole.state_dict()
    assert len(said) == 1


def test_bands_of_the_user_stand_beside_the_defaults_or_take_their_place():
    own = Band("entropy has collapsed", [Limit("rollout/entropy", below=0.1)], "Begin again.")
    bands = HealthBands([own, far()], ignore=["responses get much longer"])
    names = [band.name for band in bands.bands]
    assert len(names) == len(DEFAULT_BANDS)
    assert names[-2:] == ["entropy has collapsed", "the KL is high"]
    assert bands.bands[-2] is own
    assert "responses get much longer" not in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": ["entropy"]}, "there is no 'entropy'; there are: KL is running away, "),
        ({"action": "explode"}, "is 'explode'; it is 'warn' or 'stop'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HealthBands(**options)


def test_with_all_bands_ignored_it_still_sees_what_is_not_a_number(iterate, rollouts, said):
    bands = HealthBands(ignore=[band.name for band in DEFAULT_BANDS])
    iterate(rollouts(kls(float("nan"))), bands, num=1)
    assert len(said) == 1


def test_bands_from_yaml(tmp_path):
    text = """
    action: stop
    bands:
      - name: too far
        when:
          - {metric: rollout/kl, above: 30, per: rollout/length}
        advice: Raise kl_coef.
        patience: 2
    """
    parser = ArgumentParser()
    parser.add_class_arguments(HealthBands, "health")
    found = parser.instantiate(parser.parse_object({"health": yaml.safe_load(text)})).health
    assert found.bands[-1] == Band(
        "too far", [Limit("rollout/kl", above=30, per="rollout/length")], "Raise kl_coef.", 2
    )


def test_a_preference_run_counts_in_steps(train, policy, said):
    band = Band("the loss is there", [Limit("train/loss", above=0.0)], "Nothing.", patience=1)
    train(policy(), HealthBands([band]), limit_val_batches=0)
    assert re.fullmatch(r"step 1: the loss is there: train/loss is [\d.]+ \(above 0\)\. Nothing\.", said[0])


def test_on_the_screen_a_warning_is_one_line(iterate, rollouts, capsys):
    iterate(rollouts(kls(9)), HealthBands([far(patience=1)]), num=1)
    assert capsys.readouterr().out == (
        "warning  iteration 1: the KL is high: rollout/kl is 9 (above 5). Raise kl_coef.\n"
    )


def test_the_weights_are_those_of_a_run_that_nobody_watched(iterate, rollouts):
    weights = []
    for callbacks in ([], [HealthBands([far()])]):
        torch.manual_seed(0)
        module = rollouts(kls(9, 9, 9))
        iterate(module, *callbacks)
        weights.append(module.weight.detach())
    assert torch.equal(*weights)
