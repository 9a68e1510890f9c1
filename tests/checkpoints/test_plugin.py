"""The plugin in anyone's Trainer: saving, resuming, removing, remote paths, load_from_checkpoint."""

from __future__ import annotations

import shutil
from collections import namedtuple
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lit_rlhf
from lit_rlhf.checkpoints.plugin import SafeCheckpointIO, open_checkpoint
from lit_rlhf.checkpoints.reading import read
from lit_rlhf.checkpoints.writing import NotWrittenError


class Net(lightning.LightningModule):
    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])]


ROWS = DataLoader(torch.randn(6, 2), batch_size=2)


@pytest.fixture
def trainer(tmp_path):
    def make(*callbacks, plugins=None, **options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        plugins = [SafeCheckpointIO()] if plugins is None else plugins
        saving = {"enable_checkpointing": bool(callbacks), "callbacks": list(callbacks), "plugins": plugins}
        return lightning.Trainer(default_root_dir=tmp_path, **quiet, **{**saving, "max_epochs": 2, **options})

    return make


def fitted(trainer, **options):
    net = Net()
    trainer.fit(net, ROWS, ROWS, **options)
    return net


def test_a_run_goes_on_and_only_what_should_stays(trainer, tmp_path, same):
    torch.manual_seed(0)
    whole = fitted(trainer(max_epochs=4))
    torch.manual_seed(0)
    keep = ModelCheckpoint(tmp_path / "kept", "step-{step}", save_last=True, auto_insert_metric_name=False)
    fitted(trainer(keep))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["last.ckpt", "step-6.ckpt"]
    again = trainer(keep, max_epochs=4)
    net = fitted(again, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert again.global_step == 12
    assert same(dict(net.state_dict()), dict(whole.state_dict()))


def test_the_same_tree_as_lightnings_own_file(trainer, tmp_path, same):
    torch.manual_seed(0)
    ours = trainer()
    fitted(ours)
    ours.save_checkpoint(tmp_path / "ours.ckpt")
    torch.manual_seed(0)
    theirs = trainer(plugins=[])
    fitted(theirs)
    theirs.save_checkpoint(tmp_path / "theirs.ckpt")
    assert same(read(tmp_path / "ours.ckpt"), torch.load(tmp_path / "theirs.ckpt", weights_only=True))


@pytest.mark.parametrize("writes_ours", [True, False])
def test_either_way_of_reading(trainer, tmp_path, writes_ours):
    """Our files open in Lightning by ``open_checkpoint``, and Lightning's with our plugin."""
    one = trainer(plugins=None if writes_ours else [])
    net = fitted(one)
    one.save_checkpoint(path := tmp_path / "a.ckpt")
    loaded = Net.load_from_checkpoint(open_checkpoint(path), width=3)
    assert torch.equal(loaded.layer.weight, net.layer.weight)
    other = Net()
    trainer().validate(other, ROWS, ckpt_path=path, verbose=False)
    assert torch.equal(other.layer.weight, net.layer.weight)


def test_a_damaged_file_is_refused_and_those_beside_it_are_named(trainer, tmp_path):
    one = trainer()
    fitted(one)
    for name in ("last", "step-3", "step-6"):
        one.save_checkpoint(tmp_path / f"{name}.ckpt")
    for name in ("last", "step-3"):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"last.ckpt cannot be used: .*can be used: \S*/step-6.ckpt$"):
        fitted(trainer(), ckpt_path=tmp_path / "last.ckpt")
    (tmp_path / "step-6.ckpt").unlink()
    with pytest.raises(ValueError, match="can be used: none"):
        fitted(trainer(), ckpt_path=tmp_path / "last.ckpt")


def test_what_a_callback_keeps_must_have_a_place(trainer, tmp_path):
    class Keeps(lightning.Callback):
        def state_dict(self):
            return {"when": object()}

    with pytest.raises(ValueError, match=r"a builtins.object at callbacks / .*Keeps / when"):
        fitted(trainer(Keeps(), ModelCheckpoint(tmp_path / "kept")))


def test_leftovers_are_removed_and_said(trainer, tmp_path, caplog):
    (tmp_path / "step-9.ckpt.part").write_bytes(b"x" * 7)
    one = trainer()
    fitted(one)
    with caplog.at_level("INFO"):
        one.save_checkpoint(tmp_path / "a.ckpt")
    assert "step-9.ckpt.part (7 bytes), which a run left that was killed while it wrote" in caplog.text
    assert [path.name for path in tmp_path.glob("*.ckpt*")] == ["a.ckpt"]


def test_a_full_disk_stops_the_run_and_the_last_good_one_stays(trainer, tmp_path, monkeypatch):
    keep = ModelCheckpoint(tmp_path / "kept", "step-{step}", save_last=True, auto_insert_metric_name=False)

    class Fills(lightning.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(9, 9, 0))

    with pytest.raises(NotWrittenError, match=r"needs [\d,]+ bytes, and 0 are free"):
        fitted(trainer(Fills(), keep))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["last.ckpt", "step-3.ckpt"]
    assert read(tmp_path / "kept" / "last.ckpt")["global_step"] == 3


@pytest.mark.parametrize("path", ["s3://bucket/last.ckpt", "https://host/last.ckpt", "memory://last.ckpt"])
def test_remote_paths_are_refused(path):
    plugin = SafeCheckpointIO()
    for act in (partial(plugin.save_checkpoint, {}), plugin.load_checkpoint, plugin.remove_checkpoint):
        with pytest.raises(ValueError, match=rf"{path} is not on this machine"):
            act(path)
    with pytest.raises(ValueError, match="storage_options"):
        plugin.save_checkpoint({}, "a.ckpt", storage_options={})


def test_it_is_public():
    assert lit_rlhf.SafeCheckpointIO is SafeCheckpointIO
    assert lit_rlhf.open_checkpoint is open_checkpoint
