"""On real rows and a real small model, the first loss is that of transformers on padded rows with labels."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from datamodules import SFTDataModule
from lit_rlhf.algorithms.sft import SFTModule
from lit_rlhf.models.options import BackboneConfig

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def padded_loss(folder, batch):
    """``LlamaForCausalLM(labels=...)`` of the texts of a batch, unpacked and padded on the right."""
    rows = []
    for texts in batch.micro_batches:
        forest = texts.forest
        labels = torch.full_like(forest.tokens, -100)
        labels[forest.targets] = forest.tokens[forest.targets]
        rows += zip(forest.tokens.split(forest.lengths), labels.split(forest.lengths), strict=True)
    columns = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    values = {
        "input_ids": [tokens for tokens, _ in rows],
        "labels": [labels for _, labels in rows],
        "attention_mask": [torch.ones_like(tokens) for tokens, _ in rows],
    }
    padded = {
        name: torch.nn.utils.rnn.pad_sequence(values[name], batch_first=True, padding_value=fill)
        for name, fill in columns.items()
    }
    with torch.no_grad():
        return float(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)(**padded).loss)


@pytest.mark.parametrize("file", ["gsm8k/test.jsonl", "self_instruct/user_oriented_instructions.jsonl"])
@pytest.mark.parametrize("fused", [True, False])
def test_the_first_loss(shared_data, make_trainer, file, fused):
    folder = str(shared_data / "models" / "stories260k-llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    data = SFTDataModule(
        train=str(shared_data / file),
        tokenizer=tokenizer,
        batch_size=12,
        token_budget=700,
        max_length=400,
        truncation="drop",
        on_bad_row="drop",
        shuffle_buffer=0,
    )
    module = SFTModule(BackboneConfig(folder, dtype="float32", fused=fused))
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, data)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert len(batch.micro_batches) > 1
    assert trainer.logger.column("train/loss")[0] == pytest.approx(padded_loss(folder, batch), rel=1e-5)
