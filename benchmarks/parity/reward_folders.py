"""Folders of reward models, theirs read by us and ours read by them: largest difference of a score.

    python benchmarks/parity/reward_folders.py --trl-python TRL --run runs/reward --work scratch

``--run`` is a LoRA run on the embedded model (``configs/reward.yaml`` with ``--model.backbone.lora.enabled true``). TRL
trains an adapter and a whole model for three steps, saves them, and scores a few texts; it loads what our ``export``
makes of the run, with PEFT, with transformers, and in its RewardTrainer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NUM_ROWS = 24


def trl_side(base: str, rows: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    """Train, save, load and score with TRL, which is imported here alone."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(base)
    answered = [row["prompt"] + row[side] for row in rows[:4] for side in ("chosen", "rejected")]
    texts = [tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False) for turns in answered]
    data = Dataset.from_list(rows)

    def trainer(model: str, name: str, steps: int, peft: LoraConfig | None = None) -> Any:
        options = {"max_steps": steps, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": []}
        dtype = {"model_init_kwargs": {"dtype": "float32"}, "use_cpu": True, "bf16": False, "save_strategy": "no"}
        config = RewardConfig(output_dir=str(work / name), **options, **dtype)
        return RewardTrainer(model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=peft)

    @torch.no_grad()
    def scores(model: Any) -> list[float]:
        return [model.eval()(input_ids=torch.tensor([text])).logits[0, 0].item() for text in texts]

    found = {}
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    for name, peft in (("theirs_adapter", lora), ("theirs_whole", None)):
        run = trainer(base, name, 3, peft)
        run.train()
        run.save_model(str(work / name))
        found[name] = scores(run.model)
    kwargs: dict[str, Any] = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "dtype": torch.float32}
    plain = AutoModelForSequenceClassification.from_pretrained(base, **kwargs)
    found["ours_adapter"] = scores(PeftModel.from_pretrained(plain, work / "ours_adapter"))
    merged = str(work / "ours_merged")
    found["ours_merged"] = scores(AutoModelForSequenceClassification.from_pretrained(merged, dtype=torch.float32))
    found["ours_merged, RewardTrainer"] = scores(trainer(merged, "unused", 1).model)
    return {"texts": texts, "scores": found}


def compare(said: dict[str, Any], work: Path) -> dict[str, float]:
    """Largest difference between TRL's scores of a folder and ours."""
    import torch

    from lit_rlhf import load_reward_model
    from lit_rlhf.types import Forest, Segment

    forest = Forest.pack([[Segment(text, [False] * len(text))] for text in said["texts"]])
    differences = {}
    for name, theirs in said["scores"].items():
        with torch.no_grad():
            ours = load_reward_model(work / name.partition(",")[0], dtype="float32").scores(forest)
        differences[name] = float((ours - torch.tensor(theirs)).abs().max())
    return differences


def main() -> None:
    """Run both sides and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter with TRL 1.16")
    parser.add_argument("--run", type=Path, help="folder of a finished LoRA run on the embedded model")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--base", help="the embedded model; given to TRL's side")
    options = parser.parse_args()
    if options.base:
        rows = json.loads((options.work / "rows.json").read_text())
        (options.work / "said.json").write_text(json.dumps(trl_side(options.base, rows, options.work)))
        return
    from lit_rlhf.cli import main as lit_rlhf
    from lit_rlhf.embedded import resolve

    options.work.mkdir(parents=True, exist_ok=True)
    for name, more in (("ours_adapter", []), ("ours_merged", ["--merge"])):
        lit_rlhf(["export", str(options.run), "--out", str(options.work / name), "--dtype", "float32", *more])
    lines = Path(resolve("embedded:dpo_test.jsonl")).read_text(encoding="utf-8").splitlines()[:NUM_ROWS]
    (options.work / "rows.json").write_text(json.dumps([json.loads(line) for line in lines]))
    words = ["--work", str(options.work), "--base", resolve("embedded:tiny_llama")]
    subprocess.run([options.trl_python, __file__, *words], check=True)
    said = json.loads((options.work / "said.json").read_text())
    for name, difference in compare(said, options.work).items():
        print(f"| {name} | {difference:.1e} |")


if __name__ == "__main__":
    sys.exit(main())
