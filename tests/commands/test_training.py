"""fit, validate and predict from the command line: the folder a run leaves, resuming it, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.callbacks.metrics_file import read_metrics
from lit_rlhf.callbacks.samples import SampleTable
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.cli import main
from lit_rlhf.commands import training

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.yaml",
    "metrics.csv", "samples.jsonl", "tokenizer.json", "tokenizer_config.json", "checkpoints", "plots", "heldout.jsonl",
    "run.json", "report.html", "tensorboard",
}  # fmt: skip


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(one, other):
    assert adapter(one).keys() == adapter(other).keys()
    for name, weight in adapter(one).items():
        assert torch.equal(weight, adapter(other)[name]), name


def held_out(folder):
    """The validation losses of a run."""
    return [row["val/loss"] for row in read_metrics(folder) if "val/loss" in row]


class CaughtError(Exception):
    """Ends a run whose settings are all that a test wants to see."""


@pytest.fixture
def caught(monkeypatch):
    """Stop before training, and keep the TrainingCLI."""
    kept = []

    def fit(self, **kwargs):
        kept.append(self)
        raise CaughtError

    monkeypatch.setattr(training.TrainingCLI, "fit", fit)
    return kept


def test_the_folder_holds_what_is_needed(finished_run):
    assert {path.name for path in finished_run.iterdir()} == FILES
    assert (finished_run / "checkpoints" / "last.ckpt").is_file()
    assert (finished_run / "plots" / "all.png").stat().st_size > 10_000


def test_it_learns_and_the_first_loss_is_ln_2_with_dropout_on(finished_run):
    rows = read_metrics(finished_run)
    assert rows[0]["step"] == 0
    assert held_out(finished_run)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert held_out(finished_run)[-1] < 0.5 * math.log(2)


def test_the_last_screen_says_what_was_learnt_and_what_to_type(fit, tmp_path, capsys):
    fit(tmp_path / "dpo", "--trainer.max_steps=4")
    out = capsys.readouterr().out
    assert "done: 4 steps" in out
    assert "rewards/accuracy" in out
    assert "before (step 0)" in out
    assert "generate" in out
    assert "GPU available" not in out


def test_the_saved_configuration_does_the_run_again(finished_run, fit, tmp_path):
    main(["fit", "--config", str(finished_run / "config.yaml"), f"--trainer.default_root_dir={tmp_path / 'again'}"])
    assert_same_adapter(finished_run, tmp_path / "again")


def test_a_second_run_takes_another_folder_and_says_so(fit, tmp_path, caplog):
    folder = tmp_path / "dpo"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine")
    with caplog.at_level("INFO"):
        fit(folder, "--trainer.max_steps=1")
    assert f"{folder} holds a run already; this one goes to {folder}-2" in caplog.text
    assert (folder / "config.yaml").read_text() == "mine"
    assert (tmp_path / "dpo-2" / "adapter_model.safetensors").is_file()


def test_a_resumed_run_ends_like_one_that_was_never_stopped(finished_run, fit, tmp_path):
    folder = tmp_path / "dpo"
    checkpoints = folder / "checkpoints"
    every = "--trainer.callbacks=ModelCheckpoint"
    words = [every, f"--trainer.callbacks.dirpath={checkpoints}", "--trainer.callbacks.every_n_train_steps=5"]
    fit(folder, *words, "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=at-{step}")
    cut = checkpoints / "at-step=5.ckpt"
    assert cut.is_file()
    uninterrupted = read_metrics(folder)
    shutil.copytree(folder, tmp_path / "kept")
    fit(tmp_path / "elsewhere", f"--ckpt_path={cut}")
    assert not (tmp_path / "elsewhere").exists()
    assert_same_adapter(tmp_path / "kept", folder)
    assert_same_adapter(finished_run, folder)
    assert [row["step"] for row in read_metrics(folder)] == [row["step"] for row in uninterrupted]
    assert held_out(folder) == held_out(tmp_path / "kept")


def test_the_configuration_wins_over_the_checkpoint(caught, fit, finished_run, tmp_path):
    checkpoint = finished_run / "checkpoints" / "last.ckpt"
    with pytest.raises(CaughtError):
        fit(tmp_path / "x", f"--ckpt_path={checkpoint}", "--model.beta=0.7")
    assert caught[0].model.beta == 0.7


def test_the_tokenizer_follows_the_backbone_unless_set(caught, fit, tiny_llama, tmp_path):
    with pytest.raises(CaughtError):
        fit(tmp_path / "x")
    assert caught[0].datamodule._tokenizer == str(tiny_llama())
    other = str(tiny_llama(seed=3))
    with pytest.raises(CaughtError):
        fit(tmp_path / "x", f"--data.tokenizer={other}")
    assert caught[1].datamodule._tokenizer == other


def test_embedded_names_are_resolved_for_the_run_and_kept_in_its_configuration(caught, fit, tmp_path):
    with pytest.raises(CaughtError):
        fit(tmp_path / "x", "--data.validation=embedded:dpo_validation.jsonl")
    assert caught[0].datamodule.splits["validation"].endswith("/embedded/assets/dpo_validation.jsonl")
    assert caught[0].config.fit.data.init_args.validation == "embedded:dpo_validation.jsonl"


def test_an_embedded_name_that_does_not_exist_is_refused(fit, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path / "x", "--data.train=embedded:nope.jsonl")
    assert "error: 'embedded:nope.jsonl': the package has no 'nope.jsonl'" in capsys.readouterr().err


def test_what_the_user_gives_replaces_ours_of_its_kind(caught, fit, tmp_path):
    with pytest.raises(CaughtError):
        fit(
            tmp_path / "x",
            "--trainer.callbacks+=ModelCheckpoint",
            "--trainer.callbacks.monitor=val/loss",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
        )
    trainer = caught[0].trainer
    assert [callback.monitor for callback in trainer.checkpoint_callbacks] == ["val/loss"]
    tables = [callback for callback in trainer.callbacks if isinstance(callback, SampleTable)]
    assert [table.num_prompts for table in tables] == [2]
    assert trainer.loggers == []
    assert trainer.progress_bar_callback is None


def test_loggers_of_the_user_stand_behind_the_metrics_file(caught, fit, tmp_path):
    with pytest.raises(CaughtError):
        fit(tmp_path / "x", "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}")
    trainer = caught[0].trainer
    assert [type(logger).__name__ for logger in trainer.loggers] == ["MetricsFile", "EventFiles", "CSVLogger"]
    assert trainer.log_dir == str(tmp_path / "x")


def test_a_tensorboard_logger_of_the_user_takes_the_place_of_ours(caught, fit, tmp_path):
    with pytest.raises(CaughtError):
        fit(tmp_path / "x", "--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={tmp_path / 'logs'}")
    assert [type(logger).__name__ for logger in caught[0].trainer.loggers] == ["MetricsFile", "TensorBoardLogger"]


def test_ctrl_c_leaves_the_adapter_and_says_where_to_go_on(fit, tmp_path, monkeypatch, caplog):
    sound = DPOModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 5:
            raise KeyboardInterrupt
        return sound(self, batch, batch_idx)

    monkeypatch.setattr(DPOModule, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end, caplog.at_level("INFO"):
            fit(tmp_path / "dpo")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert end.value.code == 1
    assert (tmp_path / "dpo" / "adapter_model.safetensors").is_file()
    assert "last.ckpt (go on from it with --ckpt_path=" in caplog.text


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(fit, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "dpo"
    sound = DPOModule.training_step

    def poisoned(self, batch, batch_idx):
        if self.global_step == 5:
            next(weight for weight in self.parameters() if weight.requires_grad).data.fill_(math.nan)
        return sound(self, batch, batch_idx)

    monkeypatch.setattr(DPOModule, "training_step", poisoned)
    with pytest.raises(SystemExit) as end:
        fit(folder)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "not finite" in err
    assert "pairs.jsonl:" in err
    last = folder / "checkpoints" / "last.ckpt"
    assert f"last good checkpoint: {os.path.relpath(last)}" in err
    saved = read(last)["state_dict"]
    assert all(bool(weight.isfinite().all()) for weight in saved.values())
    assert not (folder / "adapter_model.safetensors").exists()


def test_an_interrupted_run_leaves_its_adapter(fit, tmp_path, pairs_file, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(pairs_file.read_text() + '{"prompt": "a"}\n')
    with pytest.raises(SystemExit):
        fit(tmp_path / "dpo", f"--data.train={broken}", "--data.shuffle_buffer=0")
    assert "broken.jsonl:25" in capsys.readouterr().err
    assert "interrupted after 6 steps" in (tmp_path / "dpo" / "README.md").read_text()
    assert (tmp_path / "dpo" / "adapter_model.safetensors").is_file()


def test_fast_dev_run_leaves_nothing(fit, tmp_path):
    fit(tmp_path / "dpo", "--trainer.fast_dev_run=true")
    assert not (tmp_path / "dpo").exists()


def test_validate_measures_the_checkpoint_and_leaves_the_run_alone(finished_run, config_file, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    words = ["--config", str(config_file), f"--trainer.default_root_dir={finished_run}"]
    main(["validate", *words, "--ckpt_path=last"])
    last = held_out(finished_run)[-1]
    assert f"{last:.4f}"[:6] in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_predict_writes_a_row_per_pair(finished_run, config_file, tmp_path):
    main(
        [
            "predict",
            "--config",
            str(config_file),
            f"--ckpt_path={finished_run / 'checkpoints' / 'last.ckpt'}",
            "--trainer.callbacks=lit_rlhf.callbacks.predictions.PredictionsFile",
            f"--trainer.callbacks.file={tmp_path / 'out.jsonl'}",
        ]
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert rows[0]["row"].endswith("pairs.jsonl:1")
    assert rows[0]["margin"] == pytest.approx(rows[0]["chosen_reward"] - rows[0]["rejected_reward"], abs=1e-5)
    assert sum(row["margin"] > 0 for row in rows) == 24


def test_print_config_is_a_configuration(config_file, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config_file), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["class_path"] == "lit_rlhf.DPOModule"


def test_data_are_read_as_fit_reads_them_and_nothing_else_is_built(config_file, pairs_file, tiny_llama, monkeypatch):
    monkeypatch.setattr(DPOModule, "__init__", lambda *_, **__: pytest.fail("the model was built"))
    monkeypatch.setattr(training, "Trainer", lambda *_, **__: pytest.fail("the trainer was built"))
    words = ["--config", str(config_file), "--data.init_args.test", "embedded:dpo_test.jsonl"]
    data = training.read_data([*words, "--data.init_args.max_length", "77"])
    assert (data.batch_size, data.max_length, data.splits["train"]) == (4, 77, str(pairs_file))
    assert data.tokenizer.name_or_path == str(tiny_llama())  # linked from the model
    assert data.splits["test"].endswith("dpo_test.jsonl")
    assert os.path.isfile(data.splits["test"])


REWARD = Path(__file__).parents[2] / "configs" / "reward.yaml"
BENCH = [
    {"prompt": "Hello?", "chosen": "Hello there!", "rejected": "No.", "subset": f"part {number % 2}"}
    for number in range(6)
]


@pytest.fixture(scope="module")
def reward_run(tmp_path_factory):
    """The folder of a short reward run on the embedded rankings, with an adapter."""
    folder = tmp_path_factory.mktemp("runs") / "reward"
    words = ["--model.backbone.lora.enabled=true", "--trainer.max_steps=3", "--trainer.limit_val_batches=2"]
    main(["fit", "--config", str(REWARD), f"--trainer.default_root_dir={folder}", *words, "--data.batch_size=8"])
    return folder


def test_a_reward_run_leaves_one_artefact(reward_run):
    assert {path.name for path in reward_run.iterdir()} == (FILES - {"samples.jsonl"}) | {"reward_model.json"}
    assert "base_model.model.score.weight" in adapter(reward_run)
    assert (reward_run / "plots" / "reliability.png").stat().st_size > 10_000
    assert json.loads((reward_run / "reward_model.json").read_text())["num_responses"] > 0
    assert f"lit-rlhf score {reward_run}" in (reward_run / "README.md").read_text()


def test_a_reward_run_is_tested_by_subset(reward_run, tmp_path, capsys):
    rows = tmp_path / "bench.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in BENCH))
    words = ["--model.backbone.lora.enabled=true", f"--data.test={rows}", "--data.group_by=subset", "--ckpt_path=last"]
    main(["test", "--config", str(REWARD), f"--trainer.default_root_dir={reward_run}", *words])
    table = (reward_run / "test_table.csv").read_text().splitlines()
    (reward_run / "test_table.csv").unlink()
    assert [line.split(",")[:2] for line in table[1:]] == [
        ["part 0", "3"], ["part 1", "3"], ["mean over pairs", "6"], ["mean over subsets", "6"]
    ]  # fmt: skip
    assert "mean over subsets" in capsys.readouterr().out


def test_objectives_are_named_once(caught, tmp_path):
    words = [
        "--model.objectives={helpful: 0.5, short: -1.0}",
        "--data.kind=graded",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    with pytest.raises(CaughtError):
        main(["fit", "--config", str(REWARD), *words])
    with pytest.raises(CaughtError):
        main(["fit", "--config", str(REWARD), *words, "--data.objectives=[a, b]"])
    assert [cli.datamodule.objectives for cli in caught] == [("helpful", "short"), ("a", "b")]
    assert caught[0].model.objectives == {"helpful": 0.5, "short": -1.0}
