"""One text has one score: while training, in validation, reloaded, in transformers, in PEFT, merged, among others."""

from __future__ import annotations

import argparse
import copy
from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from lit_rlhf.algorithms.dpo import DPOModule
from lit_rlhf.algorithms.reward import RewardModule
from lit_rlhf.callbacks.export import AdapterExport
from lit_rlhf.commands import export
from lit_rlhf.models.heads.reward_model import build_reward_model, load_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment

WAYS = {
    "lora": {"backbone": {"fused": True}},
    "dora_of_pissa": {"lora": {"use_dora": True, "init": "pissa"}},
    "two_objectives": {"objectives": {"good": 0.75, "short": -0.5}},
    "full": {"lora": {"enabled": False}, "lr": 0.01},
    "nf4": {"backbone": {"quantization": "nf4"}},
}


def rows_of(forest):
    spans = [[(forest.starts[part], forest.lengths[part]) for part in forest.path(leaf)] for leaf in forest.leaves]
    return [torch.cat([forest.tokens[start : start + length] for start, length in parts]).tolist() for parts in spans]


@torch.no_grad()
def by_transformers(classifier, folder, rows):
    """Scores of a padded batch with the pad token of the tokenizer that lies in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    return classifier.eval()(**batch).logits


@pytest.mark.parametrize("way", WAYS)
def test_one_text_has_one_score(
    make_reward, make_judged, fit, make_trainer, make_loader, tiny_llama, tiny_tokenizer, tmp_path, way
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token  # as many have it; the export must choose another
    module = make_reward(**WAYS[way])
    kind = "objectives" if way == "two_objectives" else "graded"
    batches = make_judged(kind, 9, 3)
    exporting = AdapterExport(str(tmp_path / "run"), tokenizer)
    fit(module, batches, validation=batches, callbacks=[exporting])
    (everything,) = make_judged(kind, 9, 9)
    forest = everything.micro_batches[0].forest
    rows = rows_of(forest)
    module.eval()
    with torch.no_grad():
        wanted = module.model.scores(forest)
        objectives = module.model.objective_scores(forest)
    assert float(wanted.std()) > 0.1
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    predicted = make_trainer(logger=False).predict(module, make_loader(batches))
    scores = torch.tensor([row["score"] for batch in predicted for row in batch])
    torch.testing.assert_close(scores, wanted, **tolerance)
    (validated,) = make_trainer(logger=False).validate(module, make_loader(batches), verbose=False)
    assert validated["val/scores/mean"] == pytest.approx(float(wanted.mean()), rel=1e-4, abs=1e-5)

    loaded = load_reward_model(tmp_path / "run", quantization="nf4" if way == "nf4" else "none")
    torch.testing.assert_close(loaded.scores(forest), wanted, **tolerance)
    alone = [loaded.scores(Forest.pack([[Segment(row, [False] * len(row))]])) for row in rows]
    torch.testing.assert_close(torch.cat(alone), wanted, **tolerance)
    torch.testing.assert_close(
        loaded.scores(forest, normalise=True), module.model.scores(forest, normalise=True), **tolerance
    )
    if way == "nf4":
        return
    num_labels = {"num_labels": len(module.objectives)}
    if way == "full":
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
        assert theirs.config.pad_token_id not in (None, tokenizer.eos_token_id)
    else:
        theirs = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), **num_labels)
        theirs = PeftModel.from_pretrained(theirs, tmp_path / "run")
    torch.testing.assert_close(by_transformers(theirs, tmp_path / "run", rows), objectives, **tolerance)

    parser = argparse.ArgumentParser()
    export.add_arguments(parser)
    export.run(parser.parse_args([str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--merge"]))
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.num_labels == 1
    torch.testing.assert_close(by_transformers(merged, tmp_path / "merged", rows)[:, 0], wanted, **tolerance)
    torch.testing.assert_close(load_reward_model(tmp_path / "merged").scores(forest), wanted, **tolerance)
    half = load_reward_model(tmp_path / "merged", dtype="bfloat16").scores(forest)
    torch.testing.assert_close(half, wanted, rtol=1e-2, atol=2e-2)


def test_training_begins_where_another_run_ended(make_reward, make_module, make_judged, fit, tmp_path):
    """From the adapter of a DPO run the states are the policy's; from a reward run the scores are that run's."""
    batches = make_judged("pairs", 8, 4)
    dpo = make_module(kind=DPOModule)
    fit(dpo, batches)
    dpo.model.save(tmp_path / "dpo")
    first = make_reward(backbone={"adapter": str(tmp_path / "dpo")})
    forest = batches[0].micro_batches[0].forest
    with torch.no_grad():
        states = dpo.model.eval().hidden_states(forest, read="ends")
        torch.testing.assert_close(first.model.scores(forest), first.model.score(states)[:, 0], rtol=1e-5, atol=1e-5)
    begun = {name: parameter.detach().clone() for name, parameter in first.named_parameters()}
    trainer = fit(first, batches)
    assert all(not torch.equal(p, begun[name]) for name, p in first.named_parameters() if p.requires_grad)
    first.model.save(tmp_path / "reward")
    second = fit(make_reward(backbone={"adapter": str(tmp_path / "reward")}), batches)
    on = fit(first, batches)
    assert second.logger.column("train/loss") == pytest.approx(on.logger.column("train/loss"), rel=1e-5)
    assert second.logger.column("train/loss")[0] != pytest.approx(trainer.logger.column("train/loss")[0], rel=1e-3)


@pytest.mark.parametrize("kind", ["peft", "backbone", "plain"])
def test_a_model_of_your_own(make_reward, make_judged, fit, tiny_llama, tmp_path, kind):
    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(tiny_llama())
    if kind == "peft":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    if kind == "backbone":
        model = make_reward().model.backbone
    module = RewardModule(model, optimizer=partial(torch.optim.SGD, lr=0.01))
    saver = ModelCheckpoint(tmp_path, filename="last")
    trainer = fit(module, make_judged("pairs", 8, 4), callbacks=[saver], enable_checkpointing=True, max_epochs=2)
    curve = trainer.logger.column("train/loss")
    assert curve[2] < curve[0]
    assert module.backbone is model
    held = {"model." + name for name in module.model.checkpointed_names}
    assert held < set(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    module.model.save(tmp_path / "run")
    forest = make_judged("pairs", 8, 8)[0].micro_batches[0].forest
    with torch.no_grad():
        wanted = module.model.eval().scores(forest)
    torch.testing.assert_close(load_reward_model(tmp_path / "run").scores(forest), wanted, rtol=1e-5, atol=1e-5)


class Own(lightning.LightningModule):
    """A module of the user's, around a reward model of ours."""

    def __init__(self, folder):
        super().__init__()
        lora = LoraOptions(r=4)
        self.model = build_reward_model(BackboneConfig(str(folder), lora=lora), {"score": 1.0})

    def training_step(self, batch, batch_idx):
        (pairs,) = batch.micro_batches
        scores = self.model.scores(pairs.forest)
        loss = -logsigmoid(scores[pairs.chosen] - scores[pairs.rejected]).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([weight for weight in self.parameters() if weight.requires_grad], lr=0.01)


def test_in_a_module_of_your_own(tiny_llama, make_judged, fit):
    torch.manual_seed(0)
    trainer = fit(Own(tiny_llama()), make_judged("pairs", 4, 4), max_epochs=3)
    curve = trainer.logger.column("train/loss")
    assert curve[-1] < curve[0]


def test_a_checkpoint_holds_adapter_and_head(
    make_reward, make_judged, fit, make_trainer, make_loader, tmp_path, tiny_llama
):
    saver = ModelCheckpoint(tmp_path, filename="last")
    module = make_reward(optimizer=torch.optim.AdamW, lr=1e-3)
    batches = make_judged("pairs", 8, 4)
    fit(module, batches, validation=batches, callbacks=[saver], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    held = {name for name in checkpoint["state_dict"] if name.startswith("model.")}
    spread = {f"model.score.{name}" for name in ("mean", "std", "num_responses")}
    assert held == spread | {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    base = (tiny_llama() / "model.safetensors").stat().st_size
    assert (tmp_path / "last.ckpt").stat().st_size < base / 2
    other = make_reward(seed=1)
    wanted = make_trainer(logger=False).predict(module, make_loader(batches))
    found = make_trainer(logger=False).predict(other, make_loader(batches), ckpt_path=tmp_path / "last.ckpt")
    assert found == wanted
    assert (other.model.score.mean, other.model.score.std) == (module.model.score.mean, module.model.score.std)


def test_checkpoints_of_other_models_are_refused(make_reward, make_module, make_judged, fit, tmp_path):
    batches = make_judged("pairs", 4, 4)
    saved = {"reward": make_reward(), "dpo": make_module(kind=DPOModule)}
    for name, module in saved.items():
        fit(module, batches, callbacks=[ModelCheckpoint(tmp_path, filename=name)], enable_checkpointing=True)
    two = {"good": 1.0, "short": 1.0}
    for name, options, message in (
        ("reward", {"lora": {"r": 8}}, r"of another model or adapter: .*lora_A\.reward\.weight is \(4, \d+\) in it"),
        ("reward", {"objectives": two}, r"model\.score\.weight is \(1, 64\) in it and \(2, 64\) here"),
        ("reward", {"lora": {"enabled": False}}, r"it lacks model\.backbone\.model\.model\.embed_tokens"),
        ("dpo", {}, r"it lacks model\.backbone\."),
    ):
        with pytest.raises(ValueError, match=message):
            fit(make_reward(**options), batches, ckpt_path=tmp_path / f"{name}.ckpt")
