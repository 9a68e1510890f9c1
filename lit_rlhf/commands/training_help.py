"""The short help of ``fit``, ``validate``, ``test`` and ``predict``: the keys that people touch, and where the rest is.

It imports nothing, so that it comes at once.
"""

from __future__ import annotations

KEYS = {
    "what is trained": {
        "--config FILE": "a configuration; several are laid over one another, and words after them win",
        "--model.backbone.name_or_path NAME": "the base model: a folder or a hub name",
        "--model.backbone.adapter RUN": "go on from what an earlier run has learnt",
        "--model.backbone.quantization nf4": "hold the base in 4 bits (QLoRA); int8, none",
        "--model.backbone.lora.r 16": "rank of the adapter; lora.enabled=false trains all weights",
        "--model.optimizer.lr 1e-4": "learning rate",
    },
    "on what": {
        "--data.train FILE": "rows: files, globs, folders or hub names; also --data.validation, --data.test",
        "--data.batch_size 64": "rows of an optimizer step, over all devices",
        "--data.token_budget 4096": "tokens at once: memory alone; with rollouts --model.updates.token_budget",
        "--data.max_length 1024": "longest row, in tokens; with rollouts --data.max_prompt_length",
    },
    "how long, and where": {
        "--trainer.max_epochs 1": "passes over the data; --trainer.max_steps, --trainer.max_time 00:04:00:00",
        "--trainer.accelerator auto": "cpu, gpu or whatever there is; --trainer.devices 8",
        "--trainer.strategy fsdp2": "shard the models over all devices; ddp copies them",
        "--trainer.precision bf16-mixed": "of the computation",
        "--trainer.default_root_dir RUN": "the folder of the run",
        "--trainer.logger WandbLogger": "one more logger; metrics.csv and tensorboard/ are always written",
    },
    "trying out, and going on": {
        "--trainer.fast_dev_run true": "one step of everything, and nothing is written",
        "--trainer.limit_val_batches 10": "shorter validations; also --trainer.limit_train_batches",
        "--seed_everything 1": "another order of rows and other samples",
        "--ckpt_path last": "go on from the newest checkpoint of the folder; auto: or begin anew",
        "--print_config": "print every setting as a configuration that can be given again",
        "--trust PACKAGE": "let configurations name classes and functions of yours",
        "--debug": "show the whole traceback of an error",
    },
}
"""Keys with a value that they may have, and what they do, by what they are for."""

_INTRO = {
    "fit": "Train, and leave a folder with what was learnt, its metrics, plots and a report.",
    "validate": "Measure a checkpoint on the validation data: validate --config RUN/config.yaml --ckpt_path last",
    "test": "Measure a checkpoint on the test data: test --config RUN/config.yaml --ckpt_path last",
    "predict": "Write rewards or scores of every row: predict --config RUN/config.yaml --ckpt_path last",
}

_EXAMPLES = """\
examples
  lit-rlhf fit --config configs/sft.yaml
  lit-rlhf fit --config configs/dpo.yaml --model.backbone.adapter=runs/sft --data.train=my_pairs.jsonl
  lit-rlhf fit --config configs/llama3_8b/dpo_qlora.yaml --trainer.devices=8
  lit-rlhf fit --config runs/dpo/config.yaml --ckpt_path=last"""

_MORE = """\
All keys: lit-rlhf {command} --help=all.  Those of one class: lit-rlhf {command} --model.help lit_rlhf.DPOModule,
--data.help datamodules.PreferenceDataModule.  In a file they stand below `init_args` (configs/*.yaml show where)."""


def text(command: str) -> str:
    """The short help of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    groups = ["\n".join([title, *(f"  {key:<37}{does}" for key, does in keys.items())]) for title, keys in KEYS.items()]
    usage = f"usage: lit-rlhf {command} --config FILE [--KEY=VALUE ...]\n\n{_INTRO[command]}"
    examples = [_EXAMPLES] if command == "fit" else []
    return "\n\n".join([usage, *groups, *examples, _MORE.format(command=command)])
