"""The reliability plot: drawn at each end from the module's own bins, and only for modules that have them."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lit_rlhf.callbacks.reliability import ReliabilityPlot, draw
from lit_rlhf.metrics.calibration import Calibration, ReliabilityBin

BINS = [ReliabilityBin(0.5, 0.55, 0.52, 0.5, 40), ReliabilityBin(0.8, 0.85, 0.81, 0.7, 10)]
METRICS = {"scores/ece": 0.0364, "scores/brier": 0.21}


class Scorer(LightningModule):
    """Learns nothing; keeps the bins of its last evaluation."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.reliability: list[ReliabilityBin] = []
        self.calibration = Calibration()

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.calibration.update(batch)

    test_step = validation_step

    def on_validation_epoch_end(self):
        self._keep("val")

    def on_test_epoch_end(self):
        self._keep("test")

    def _keep(self, stage):
        self.reliability = self.calibration.bins()
        self.log_dict({f"{stage}/{name}": value for name, value in self.calibration.compute().items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plain(Scorer):
    def __init__(self):
        super().__init__()
        del self.reliability

    def _keep(self, stage):
        pass


@pytest.fixture
def run(tmp_path):
    def go(stage, module, **options):
        data = DataLoader(torch.randn(8, 4), batch_size=None)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=tmp_path,
            max_epochs=2,
            enable_checkpointing=False,
            callbacks=[ReliabilityPlot()],
            **quiet,
            **options,
        )
        loaders = (data, data) if stage == "fit" else (data,)
        getattr(trainer, stage)(module, *loaders)
        return tmp_path / "plots" / "reliability.png"

    return go


@pytest.mark.parametrize(("stage", "prefix"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_drawn_once_at_the_end_with_the_numbers_of_the_stage(stage, prefix, run, monkeypatch):
    drawn = []
    monkeypatch.setattr("lit_rlhf.callbacks.reliability.draw", lambda *given: drawn.append(given))
    module = Scorer()
    run(stage, module)
    ((_, bins, metrics),) = drawn
    assert bins == module.reliability
    assert metrics == pytest.approx({name: float(x) for name, x in module.calibration.compute().items()}), prefix


def test_the_picture_lies_in_the_folder_of_the_run(run):
    assert run("test", Scorer()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_val_batches": 0}])
def test_not_drawn_without_an_evaluation_that_counts(options, run):
    assert not run("fit", Scorer(), **options).exists()


def test_other_modules_are_passed_over(run):
    assert not run("fit", Plain()).exists()


def test_what_is_drawn(tmp_path, monkeypatch):
    figures = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **options: figures.append(self))
    draw(tmp_path, BINS, METRICS)
    above, below = figures[0].axes
    assert above.get_title(loc="left") == "reliability over 50 pairs    ECE 0.036    Brier score 0.210"
    points = above.containers[0].lines[0]
    assert points.get_xydata().tolist() == [[0.52, 0.5], [0.81, 0.7]]
    low, high = above.get_ylim()
    assert low < 0.5
    assert high > 1
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in below.patches]
    assert bars == [(0.5, pytest.approx(0.05), 40), (0.8, pytest.approx(0.05), 10)]


def test_other_ranks_draw_nothing(run, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    assert not run("test", Scorer()).exists()
