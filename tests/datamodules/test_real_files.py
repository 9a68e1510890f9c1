"""Every real file is read as it is, its form named, every row of it counted, and trained on for some steps."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial

import lightning
import pytest
import torch
from torch.nn.functional import logsigmoid

from datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from datamodules.forms import read_row
from datamodules.packing import TokenSequence, pack_sequences
from datamodules.records import BadRowError
from lit_rlhf import BackboneConfig, DPOModule
from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.options import LoraOptions
from lit_rlhf.types import PromptBatch

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


class Forests(lightning.LightningModule):
    """Trains on batches of forests; a subclass says how much it likes each micro-batch."""

    def __init__(self, config):
        super().__init__()
        self.config, self.noted = config, []

    def configure_model(self):
        if "model" not in self._modules:
            self.model = build_backbone(self.config)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.noted.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=1e-2)


class Imitation(Forests):
    """Learns the scored tokens of instructions."""

    def loss(self, batch):
        return -torch.cat([self.model.token_logprobs(part.forest).logprobs for part in batch.micro_batches]).mean()


class Thumbs(Forests):
    """Makes what got a thumb up likelier, and what got one down less likely."""

    def loss(self, batch):
        losses = []
        for part in batch.micro_batches:
            logprobs = self.model.token_logprobs(part.forest).logprobs
            wholes = logprobs.new_zeros(len(part.rows)).index_add(0, part.forest.sequences, logprobs)
            losses.append(-logsigmoid(torch.where(part.labels, 0.01 * wholes, -0.01 * wholes)))
        return torch.cat(losses).mean()


class Prompts(Imitation):
    """Learns the prompts by heart, for want of a reward."""

    def loss(self, batch):
        longer = [prompt.tokens for prompt in batch.prompts if len(prompt.tokens) > 1]
        sequences = [TokenSequence(tokens, [False] + [True] * (len(tokens) - 1)) for tokens in longer]
        return super().loss(pack_sequences(sequences, 1024))


class Preferences(DPOModule):
    """DPO, which notes its losses."""

    def __init__(self, config):
        super().__init__(config, optimizer=partial(torch.optim.Adam, lr=1e-2))
        self.noted = []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.noted.append(float(self.trainer.callback_metrics["train/loss"]))


USES = {
    "pairs": (partial(PreferenceDataModule, max_length=256), Preferences),
    "thumbs": (partial(PreferenceDataModule, kind="unpaired", max_length=256), Thumbs),
    "texts": (partial(SFTDataModule, max_length=256), Imitation),
    "prompts": (partial(PromptDataModule, max_prompt_length=256), Prompts),
}

# What is used, the file, its form, its rows, and what is said of them.
FILES = [
    ("pairs", "hh_rlhf_harmless/rows_0_1799.jsonl.gz", "Anthropic HH dialogue", 1800, {"dropped/empty_response": 4}),
    ("pairs", "llama_factory/dpo_en_demo.json", "ShareGPT ranking", 300, {}),
    ("pairs", "llama_factory/dpo_zh_demo.json", "ShareGPT ranking", 300, {}),
    ("pairs", "llama_factory/v1_dpo_demo.jsonl", "LLaMA-Factory v1 pair", 10, {}),
    ("pairs", "medicalgpt_zh/dpo_zh_500.jsonl", "ShareGPT ranking", 500, {}),
    ("pairs", "medicalgpt_zh/toolcall_dpo_zh_demo.jsonl", "ShareGPT ranking", 11, {}),
    ("pairs", "nlvr/color_pairs_dev.jsonl", "TRL preference, explicit", 2191, {"ignored/images": 2191}),
    ("pairs", "nlvr/color_pairs_test.jsonl", "TRL preference, explicit", 864, {"ignored/images": 864}),
    ("pairs", "tinystories_pairs/train.jsonl", "TRL preference, explicit", 1600, {}),
    ("pairs", "tinystories_pairs/test.jsonl", "TRL preference, explicit", 400, {}),
    ("pairs", "gsm8k/example_model_solutions.jsonl", "graded answers", 1319, {"dropped/no_pair": 588}),
    ("thumbs", "gsm8k/example_model_solutions.jsonl", "graded answers", 1319, {}),
    ("thumbs", "llama_factory/kto_en_demo.json", "conversation with a thumb", 300, {}),
    ("thumbs", "nlvr/dev.jsonl", "judged statement", 989, {"ignored/images": 989}),
    ("thumbs", "nlvr/test.jsonl", "judged statement", 400, {"ignored/images": 400}),
    ("texts", "gsm8k/train.jsonl", "question and answer", 7473, {}),
    ("texts", "llama_factory/mllm_demo.json", "OpenAI conversation", 6, {"ignored/images": 6}),
    ("texts", "llama_factory/v1_multimodal_demo.jsonl", "OpenAI conversation", 24, {"ignored/images": 24}),
    ("texts", "self_instruct/seed_tasks.jsonl", "Self-Instruct instances", 175, {}),
    ("texts", "self_instruct/user_oriented_instructions.jsonl", "Self-Instruct instances", 252, {}),
    ("texts", "tinystories/train.jsonl", "prompt and completion", 579, {}),
    ("texts", "tinystories/mojibake.jsonl", "text", 40, {}),
    ("prompts", "gsm8k/test.jsonl", "question and answer", 1319, {}),
    ("prompts", "tinystories/test.jsonl", "prompt and completion", 145, {}),
    ("prompts", "llama_factory/mllm_demo.json", "OpenAI conversation", 6, {"ignored/images": 6}),
]


def test_no_file_is_left_out(shared_data):
    files = {str(file.relative_to(shared_data)) for file in shared_data.rglob("*.json*") if "models" not in file.parts}
    assert files == {file for _, file, *_ in FILES}


@pytest.mark.parametrize(("use", "file", "form", "num_rows", "said"), FILES, ids=lambda value: str(value)[:50])
@pytest.mark.filterwarnings("ignore:.* its pictures are not seen", "ignore:the chat template writes no special token")
def test_a_real_file(shared_data, tmp_path, use, file, form, num_rows, said):
    model = str(shared_data / "models" / "stories260k-llama")
    make, train = USES[use]
    options = {"tokenizer": model, "chat_template": CHAT, "on_bad_row": "drop", "images": "ignore"}
    data = make(train=str(shared_data / file), batch_size=4, **options)
    rows = list(data.sources("train")[0].read())
    assert len({row.address for row in rows}) == len(rows) == num_rows
    assert {name for row in rows for name in forms_of(row)} == {form}
    used, notes = read_all(make(train=str(shared_data / file), batch_size=64, shuffle_buffer=0, **options))
    assert {name: count for name, count in notes.items() if not name.startswith("truncated/")} == said
    num_dropped = sum(count for name, count in said.items() if name.startswith("dropped/"))
    assert used < {row.address for row in rows} if num_dropped else used == {row.address for row in rows}
    assert len(used) + num_dropped == num_rows
    torch.manual_seed(0)
    module = train(BackboneConfig(model, dtype="float32", lora=LoraOptions(r=2, alpha=4)))
    module.configure_model()
    before = {name: weight.clone() for name, weight in module.named_parameters() if weight.requires_grad}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", max_steps=3, log_every_n_steps=1, default_root_dir=tmp_path, **quiet)
    trainer.fit(module, data)
    assert trainer.global_step == len(module.noted) == 3
    assert all(map(math.isfinite, module.noted))
    after = dict(module.named_parameters())
    assert all(torch.isfinite(after[name]).all() for name in before)
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    assert sum(data.summary().get(name, 0) for name in ("pairs", "responses", "texts", "prompts")) > 0


def read_all(data):
    """The rows of an epoch that were used, and the counts."""
    used, notes = set(), Counter()
    for batch in data.train_dataloader():
        if isinstance(batch, PromptBatch):
            used.update(prompt.row for prompt in batch.prompts)
        else:
            used.update(row for part in batch.micro_batches for row in part.rows)
        notes.update({name: count for name, count in batch.notes.items() if name not in ("tokens", "room")})
    return used, notes


def forms_of(row):
    """Names of the forms that a row is read by; none if it is refused."""
    try:
        return {record.form for record in read_row(row.decode(), row.layout)}
    except BadRowError:
        return set()
