"""A small LLaVA learns to look: SFT, a reward model beside its blind control, DPO and PPO on real pictures.

    python benchmarks/vision_nlvr.py --nlvr DIR --model DIR --out OUT

``--nlvr`` is a folder with the colour pairs made of NLVR (Suhr et al., ACL 2017): a strip of three boxes, and two
answers that name a colour, of which the better one takes more of the strip. ``--model`` is a small Llama with a
tokenizer. The LLaVA is made here, offline: a CLIP of two layers that nobody trained before that Llama, so that
everything it knows of pictures it learns in these runs, by training all weights. Each strip is shown as three pictures
of 32 x 32, 48 image tokens.

The reward model can only beat its control, which sees the same rows without their pictures, by looking. DPO and PPO go
on from the SFT run; PPO is rewarded where its answer is the better one, which takes looking as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from side_by_side import commit, hardware

import lit_rlhf
from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from lit_rlhf.models.options import BackboneConfig, CriticOptions, LoraOptions
from lit_rlhf.rewards import FunctionReward, WeightedReward
from lit_rlhf.rollout.options import KLOptions, UpdateOptions
from lit_rlhf.rollout.sampling.request import SamplingOptions

BOXES = (0, 150, 300)
"""Where the three boxes of a strip begin, in pixels; each is 100 wide and high."""

INITIAL_STD = 0.15
"""Of the fresh patches and projector: rows come to the size of the Llama's embeddings. With 0.02 nothing is learnt."""

REWARD_GATE, BLIND_GATE = 0.75, 0.58
"""Least held-out accuracy of a reward model that looks, and most of one that does not."""


def build_llava(model: Path, folder: Path, seed: int) -> Path:
    """Put eyes on a Llama, and write model, tokenizer and processor into a folder."""
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    llama = LlamaForCausalLM.from_pretrained(model)
    llama.resize_token_embeddings(len(tokenizer))
    eyes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**eyes, image_size=32, patch_size=8),
            text_config=llama.config,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
            tie_word_embeddings=True,
        )
    )
    llava.model.language_model.load_state_dict(llama.model.state_dict())
    for name, parameter in llava.named_parameters():
        if "patch_embedding" in name or ("multi_modal_projector" in name and parameter.ndim > 1):
            torch.nn.init.normal_(parameter, std=INITIAL_STD)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(images, tokenizer, 8, "default", num_additional_image_tokens=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    llava.generation_config = llama.generation_config
    llava.save_pretrained(folder)
    return folder


def write_rows(nlvr: Path, split: str, folder: Path) -> Path:
    """Cut the strips of a split into boxes, and write its pairs, which serve SFT and PPO as well."""
    lines, file = [], folder / f"{split}.jsonl"
    for line in (nlvr / f"color_pairs_{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        boxes = [f"boxes/{Path(row['image']).stem}-{begin}.png" for begin in BOXES]
        for begin, box in zip(BOXES, boxes, strict=True):
            if not (folder / box).exists():
                (folder / box).parent.mkdir(parents=True, exist_ok=True)
                Image.open(nlvr / row["image"]).crop((begin, 0, begin + 100, 100)).save(folder / box)
        answers = {name: f" {row[name]}" for name in ("chosen", "rejected")}
        prompt = "<image>" * len(BOXES) + row["prompt"]
        lines.append(json.dumps({"prompt": prompt, **answers, "answer": row["chosen"], "images": boxes}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def is_right(response: str, answer: str) -> float:
    """1 for the better answer of the row. Rows about one strip may prefer different ones, so 1 is out of reach."""
    return float(response.strip() == answer)


def trained(module: Any, data: Any, out: Path, steps: int, every: int) -> list[dict[str, float]]:
    """Train, look at the held-out rows now and then; what was seen."""
    seen: list[dict[str, float]] = []

    class Watch(lightning.Callback):
        def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            seen.append({"step": trainer.global_step, **metrics})

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=-1,
        callbacks=[Watch()],
        logger=CSVLogger(out),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=out,
        **({} if isinstance(module, lit_rlhf.PPOModule) else {"gradient_clip_val": 1.0}),
    )
    trainer.fit(module, data)
    return seen


def backbone(folder: Path) -> BackboneConfig:
    """All weights are trained: the tower has everything to learn."""
    return BackboneConfig(str(folder), lora=LoraOptions(enabled=False))


def adam(lr: float) -> Any:
    """AdamW without decay."""
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.0)


def reward(llava: Path, rows: Path, out: Path, seed: int, images: str, steps: int) -> dict[str, Any]:
    """Held-out accuracy of a reward model, best of its looks."""
    lightning.seed_everything(seed, verbose=False)
    module = lit_rlhf.RewardModule(backbone(llava), optimizer=adam(1e-3))
    files = {"train": str(rows / "dev.jsonl"), "validation": str(rows / "test.jsonl"), "tokenizer": str(llava)}
    data = PreferenceDataModule(**files, batch_size=32, token_budget=4096, images=images, seed=seed)
    seen = trained(module, data, out, steps, steps // 2)
    curve = {look["step"]: look["val/scores/accuracy"] for look in seen if look["step"]}
    return {"seed": seed, "images": images, "accuracy": curve, "best": max(curve.values())}


def answers(llava: Path, rows: Path, out: Path, seed: int, steps: dict[str, int]) -> dict[str, Any]:
    """SFT, then DPO and PPO from where it ended; how often answers to held-out strips are right."""
    lightning.seed_everything(seed, verbose=False)
    files = {"train": str(rows / "dev.jsonl"), "validation": str(rows / "test.jsonl"), "tokenizer": str(llava)}
    sft = lit_rlhf.SFTModule(backbone(llava), optimizer=adam(1e-3))
    seen = {"sft": trained(sft, SFTDataModule(**files, batch_size=32, seed=seed), out / "sft", steps["sft"], 10**6)}
    start = out / "sft" / "model"
    sft.model.save(start)
    for file in llava.iterdir():
        if not (start / file.name).exists():
            (start / file.name).write_bytes(file.read_bytes())
    files["tokenizer"] = str(start)
    dpo = lit_rlhf.DPOModule(backbone(start), optimizer=adam(1e-4))
    pairs = PreferenceDataModule(**files, batch_size=32, token_budget=4096, seed=seed)
    seen["dpo"] = trained(dpo, pairs, out / "dpo", steps["dpo"], steps["dpo"])
    ppo = lit_rlhf.PPOModule(
        backbone(start),
        rewards=[WeightedReward(FunctionReward(is_right))],
        sampling=SamplingOptions(max_new_tokens=24),
        kl=KLOptions(coef=0.02),
        updates=UpdateOptions(num_epochs=2, num_minibatches=2),
        critic=CriticOptions(kind="model", init_from="fresh", lr_factor=3.0),
        optimizer=adam(2e-4),
    )
    prompts = PromptDataModule(**files, batch_size=64, seed=seed)
    # Looks are counted in iterations, of which each has four optimizer steps.
    seen["ppo"] = trained(ppo, prompts, out / "ppo", steps["ppo"], steps["ppo"] // 4)
    return {"seed": seed, **seen}


def summary(rewards: list[dict[str, Any]], learnt: list[dict[str, Any]]) -> str:
    """The tables of the results."""
    lines = ["| reward model | held-out accuracy, seed by seed | mean |", "| --- | --- | --- |"]
    for name, images in (("looks", "see"), ("blind", "ignore")):
        best = [run["best"] for run in rewards if run["images"] == images]
        if best:
            lines.append(f"| {name} | {', '.join(f'{one:.3f}' for one in best)} | {statistics.mean(best):.3f} |")
    lines += ["", "| held-out, seed by seed | before | after |", "| --- | --- | --- |"]
    for kind, metric in (("dpo", "val/rewards/accuracy"), ("ppo", "val/score")):
        ends = [[run[kind][place].get(metric, float("nan")) for run in learnt] for place in (0, -1)]
        cells = (", ".join(f"{one:.3f}" for one in column) for column in ends)
        lines.append(f"| {kind.upper()}, `{metric}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train everything, write the results, and miss no gate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nlvr", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("reward", "answers"))
    parser.add_argument("--reward_steps", type=int, default=400)
    parser.add_argument("--steps", type=json.loads, default={"sft": 150, "dpo": 100, "ppo": 160})
    args = parser.parse_args()
    torch.set_num_threads(1)
    for split in ("dev", "test"):
        write_rows(args.nlvr, split, args.out)
    rewards, learnt = [], []
    for seed in args.seeds:
        llava = build_llava(args.model, args.out / f"llava{seed}", seed)
        for images in ("see", "ignore") if args.only != "answers" else ():
            rewards.append(reward(llava, args.out, args.out / f"{images}{seed}", seed, images, args.reward_steps))
            print(rewards[-1])
        if args.only != "reward":
            learnt.append(answers(llava, args.out, args.out / f"answers{seed}", seed, args.steps))
            print(learnt[-1])
    table = summary(rewards, learnt)
    results = {"hardware": hardware("cpu"), "commit": commit(), "reward": rewards, "answers": learnt}
    (args.out / "vision_nlvr.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "vision_nlvr.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    if any(run["best"] < REWARD_GATE if run["images"] == "see" else run["best"] > BLIND_GATE for run in rewards):
        raise SystemExit(f"a reward model that looks is below {REWARD_GATE}, or a blind one above {BLIND_GATE}")


if __name__ == "__main__":
    main()
