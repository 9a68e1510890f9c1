"""What the tests of the models share: small forests, and the oracle that forests are measured against."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_rlhf.models.building import build_backbone
from lit_rlhf.models.heads.reward_model import build_reward_model
from lit_rlhf.models.options import BackboneConfig, LoraOptions
from lit_rlhf.types import Forest, Segment


def pack(*trees):
    """A forest from (tokens, parent) segments; every token of a leaf that has one before it is scored."""
    packed = []
    for shape in trees:
        parents, filled = {parent for _, parent in shape}, []
        tree = []
        for number, (tokens, parent) in enumerate(shape):
            before = filled[parent] if number else False
            filled.append(before or bool(tokens))
            is_leaf = number not in parents
            tree.append(Segment(tokens, [is_leaf and (before or at > 0) for at in range(len(tokens))], parent))
        packed.append(tree)
    return Forest.pack(packed)


@pytest.fixture(scope="session")
def make_forest():
    """Packs trees given as lists of (tokens, parent)."""
    return pack


@pytest.fixture(scope="session")
def ragged():
    """Pairs of uneven lengths, a plain sequence, and a tree of depth 3 with an empty root and an empty segment."""

    def tokens(length, start):
        return [7 + (start + 11 * at) % 290 for at in range(length)]

    return pack(
        [(tokens(9, 1), -1), (tokens(4, 2), 0), (tokens(13, 3), 0)],
        [(tokens(1, 4), -1), (tokens(7, 5), 0), (tokens(1, 6), 0)],
        [(tokens(6, 7), -1)],
        [([], -1), (tokens(5, 8), 0), ([], 1), (tokens(3, 9), 2), (tokens(2, 10), 2), (tokens(4, 11), 1)],
    )


@pytest.fixture(scope="session")
def row_logprobs():
    """The oracle: each sequence as one row of its own through the model's own forward, and all of its logits."""

    def compute(model, forest):
        scored, found = set(forest.targets.tolist()), []
        for segment in forest.leaves:
            spans = [
                range(forest.starts[part], forest.starts[part] + forest.lengths[part]) for part in forest.path(segment)
            ]
            index = [at for span in spans for at in span]
            row = forest.tokens[index]
            logprobs = torch.log_softmax(model(input_ids=row[None], use_cache=False).logits[0].float(), dim=-1)
            found += [logprobs[at - 1, row[at]] for at, place in enumerate(index) if place in scored]
        return torch.stack(found)

    return compute


@pytest.fixture(scope="session")
def real_pairs(shared_data):
    """Real HH pairs as one forest, in tokens of the small real Llama."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "stories260k-llama")
    trees = []
    with gzip.open(shared_data / "hh_rlhf_harmless" / "rows_0_1799.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in islice(lines, 40):
            chosen, rejected = (tokenizer(json.loads(line)[side])["input_ids"] for side in ("chosen", "rejected"))
            shared = next(at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
            if len(chosen) + len(rejected) < 700:
                trees.append([(chosen[:shared], -1), (chosen[shared:], 0), (rejected[shared:], 0)])
    assert len(trees) > 5
    return pack(*trees[:6])


@pytest.fixture
def build(tiny_llama):
    """Factory of backbones on the tiny Llama; the LoRA is small, and not fused unless asked for."""

    def make(folder=None, reference="fixed", lora=None, **options):
        settings = {"r": 4, "alpha": 8, **(lora or {})}
        config = BackboneConfig(
            str(folder or tiny_llama()), lora=LoraOptions(**settings), **{"fused": False, **options}
        )
        return build_backbone(config, reference=reference)

    return make


@pytest.fixture(scope="session")
def stir():
    """Moves every trained parameter a little, as training would."""

    @torch.no_grad()
    def move(module, scale=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_((scale * noise * (1 if parameter.ndim > 1 else 0.1)).to(parameter.dtype))
        return module

    return move


@pytest.fixture(scope="session")
def stock():
    """Loads a plain Hugging Face model in its own attention, untouched by this package."""

    def load(folder, **options):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)
        return model.requires_grad_(False)

    return load


@pytest.fixture
def build_reward(tiny_llama):
    """Factory of reward models on the tiny Llama; the LoRA is small, and not fused unless asked for."""

    def make(folder=None, objectives=None, lora=None, **options):
        settings = {"r": 4, "alpha": 8, **(lora or {})}
        config = BackboneConfig(
            str(folder or tiny_llama()), lora=LoraOptions(**settings), **{"fused": False, **options}
        )
        return build_reward_model(config, objectives or {"score": 1.0})

    return make


@pytest.fixture(scope="session")
def row_ends():
    """The oracle of scores: the last hidden state (L, H) of each sequence, as one row of its own, without a mask."""

    def compute(decoder, forest):
        found = []
        for leaf in forest.leaves:
            starts = [(forest.starts[part], forest.lengths[part]) for part in forest.path(leaf)]
            row = torch.cat([forest.tokens[start : start + length] for start, length in starts])
            found.append(decoder(input_ids=row[None], use_cache=False).last_hidden_state[0, -1])
        return torch.stack(found)

    return compute


@pytest.fixture(scope="session")
def hollow():
    """Trees of which some leaves are empty: these sequences end where others go on, or where others end."""
    tokens = [7 + 11 * at % 290 for at in range(40)]
    return pack(
        [(tokens[:5], -1), (tokens[5:9], 0), ([], 0), ([], 1), (tokens[9:12], 1)],
        [(tokens[12:15], -1), ([], 0), (tokens[15:20], 0)],
        [(tokens[20:22], -1), ([], 0)],
        [([], -1), (tokens[22:30], 0), ([], 1), ([], 2)],
    )
