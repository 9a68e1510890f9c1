"""Reward models: scores that are those of rows alone, wherever the weights come from, and heads that do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lit_rlhf.models.backbone import Backbone
from lit_rlhf.models.heads.reward_model import (
    RewardModel,
    add_reward_model,
    build_reward_model,
    load_reward_model,
    wrap_reward_model,
)
from lit_rlhf.models.heads.score_head import ScoreHead
from lit_rlhf.models.layers.attention import FOREST_ATTENTION

TWO = {"good": 0.75, "short": -0.5}
WAYS = {
    "plain": {},
    "fused": {"fused": True},
    "checkpointed": {"gradient_checkpointing": True},
    "nf4": {"quantization": "nf4", "fused": True},
    "dora": {"lora": {"use_dora": True}, "fused": True},
    "pissa": {"lora": {"init": "pissa"}},
    "full": {"lora": {"enabled": False}, "fused": True},
    "padded": {"attention": "sdpa"},
}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def uneven(numbers):
    return (numbers.flatten() * torch.linspace(-1, 1, numbers.numel())).sum()


@pytest.mark.parametrize("way", WAYS)
def test_scores_and_gradients_are_those_of_rows_alone(build_reward, stir, ragged, hollow, row_ends, way):
    model = stir(build_reward(objectives=TWO, **WAYS[way])).eval()
    model.prepare()
    for forest in (ragged, hollow):
        model.base.set_attn_implementation("eager")
        expected = row_ends(model.base.get_decoder(), forest).float() @ model.score.weight.T
        wanted = gradients(model, uneven(expected))
        model.base.set_attn_implementation("sdpa" if way == "padded" else FOREST_ATTENTION)
        scores = model.objective_scores(forest)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        ours = gradients(model, uneven(scores))
        for name, gradient in wanted.items():
            assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
        assert all(gradient.any() for name, gradient in ours.items() if "lora" in name)
        torch.testing.assert_close(model.scores(forest), 0.75 * scores[:, 0] - 0.5 * scores[:, 1])
    assert model.backbone.layout == ("padded" if way == "padded" else "forest")


@torch.no_grad()
@pytest.mark.parametrize("way", ["plain", "fused", "padded"])
def test_steps_are_scored_at_the_tokens_that_are_marked(build_reward, stir, ragged, way):
    model = stir(build_reward(objectives=TWO, **WAYS[way])).eval()
    states = model.backbone.hidden_states(ragged)
    torch.testing.assert_close(
        model.step_scores(ragged), model.score(states[ragged.targets]) @ torch.tensor([0.75, -0.5])
    )
    ends = [int(at) for at in torch.cat([ragged.sequences.diff(), torch.ones(1)]).nonzero()]
    torch.testing.assert_close(model.step_scores(ragged)[ends], model.scores(ragged), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_other_texts_in_the_batch_change_nothing(build_reward, stir, ragged, make_forest):
    model = stir(build_reward(fused=True)).eval()
    together = model.scores(ragged)
    for number, leaf in enumerate(ragged.leaves):
        parts = [(ragged.starts[part], ragged.lengths[part]) for part in ragged.path(leaf)]
        row = torch.cat([ragged.tokens[start : start + length] for start, length in parts]).tolist()
        assert float(model.scores(make_forest([(row, -1)]))) == pytest.approx(float(together[number]), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": {"enabled": False}}])
def test_a_half_precision_backbone_is_scored_in_float32(build_reward, ragged, options):
    model = build_reward(dtype="bfloat16", **options)
    assert model.score.weight.dtype == torch.float32
    for found in (model.objective_scores(ragged), model.scores(ragged), model.step_scores(ragged)):
        assert found.dtype == torch.float32
        assert not torch.equal(found, found.bfloat16().float())


def test_it_begins_near_zero_with_a_head_that_is_trained(build_reward, ragged):
    torch.manual_seed(0)
    model = build_reward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "score.weight" in trained
    assert {name for name in trained if ".reward." not in name} == {"score.weight"}
    assert float(model.scores(ragged).detach().abs().max()) < 4
    assert not model.backbone.has_lm_head


@torch.no_grad()
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"init": "pissa"},
    ],
    ids=str,
)
def test_going_on_from_the_adapter_of_a_policy(build, build_reward, stir, ragged, row_ends, tmp_path, lora):
    policy = stir(build(lora=lora)).eval()
    policy.save(tmp_path)
    policy.base.set_attn_implementation("eager")
    states = row_ends(policy.base.get_decoder(), ragged)
    model = build_reward(adapter=str(tmp_path)).eval()
    torch.testing.assert_close(model.scores(ragged), (states @ model.score.weight.T)[:, 0], rtol=1e-5, atol=1e-5)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("embed_tokens" in name for name in trained) == ("embed_tokens" in lora.get("modules_to_save", []))
    model.save(tmp_path / "reward")
    again = load_reward_model(tmp_path / "reward")
    torch.testing.assert_close(again.scores(ragged), model.scores(ragged), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_going_on_from_a_reward_model(build_reward, stir, ragged, tmp_path):
    first = stir(build_reward(objectives=TWO)).eval()
    first.score.measure(1.0, 2.0, 30)
    first.save(tmp_path)
    again = build_reward(objectives={"good": 0.75, "brief": -0.5}, adapter=str(tmp_path), lora={"dropout": 0.5})
    torch.testing.assert_close(again.eval().scores(ragged), first.scores(ragged), rtol=1e-5, atol=1e-5)
    assert again.score.objectives == {"good": 0.75, "brief": -0.5}, "what is asked for goes before what is saved"
    assert again.score.weight.requires_grad
    assert again.score.is_measured
    with pytest.raises(ValueError, match=r"its head has 2 outputs, for good, short, and objectives are score"):
        build_reward(adapter=str(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("enabled", [False, True])
def test_going_on_from_a_classifier_of_transformers(build_reward, tiny_llama, ragged, row_ends, tmp_path, enabled):
    torch.manual_seed(3)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=1, pad_token_id=0).eval()
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    wanted = theirs.score(row_ends(theirs.model, ragged))[:, 0]
    for model in (build_reward(folder=tmp_path, lora={"enabled": enabled}), load_reward_model(tmp_path)):
        torch.testing.assert_close(model.eval().scores(ragged), wanted, rtol=1e-5, atol=1e-5)


def test_a_classifier_over_labels_is_no_reward_model_of_one_score(build_reward, tiny_llama, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(tiny_llama(), num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its head has 3 outputs, for score_0, score_1, score_2, and objectives are"):
        build_reward(folder=tmp_path)
    assert load_reward_model(tmp_path).score.objectives == dict.fromkeys(("score_0", "score_1", "score_2"), 1 / 3)


@torch.no_grad()
@pytest.mark.parametrize("file", ["value_head.safetensors", "value_head.bin"])
def test_value_heads_of_llama_factory(build, build_reward, stir, ragged, row_ends, tmp_path, file):
    policy = stir(build()).eval()
    policy.save(tmp_path)
    head = {"v_head.summary.weight": torch.randn(1, 64), "v_head.summary.bias": torch.tensor([0.5])}
    save_file(head, tmp_path / file) if file.endswith("safetensors") else torch.save(head, tmp_path / file)
    policy.base.set_attn_implementation("eager")
    wanted = (row_ends(policy.base.get_decoder(), ragged) @ head["v_head.summary.weight"].T)[:, 0] + 0.5
    for model in (load_reward_model(tmp_path), build_reward(adapter=str(tmp_path))):
        torch.testing.assert_close(model.eval().scores(ragged), wanted, rtol=1e-5, atol=1e-5)
    model.save(tmp_path / "again")
    torch.testing.assert_close(load_reward_model(tmp_path / "again").scores(ragged), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3_tied", "gpt2_tied"])
@pytest.mark.parametrize("enabled", [False, True])
def test_tied_embeddings_and_other_decoders(build_reward, stir, hollow, tmp_path, kind, enabled):
    """The head that is left out shares its memory with the embedding, which must stay, in the files too."""
    torch.manual_seed(0)
    if kind == "qwen3_tied":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
        config = Qwen3Config(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, **heads, pad_token_id=0, tie_word_embeddings=True
        )
        Qwen3ForCausalLM(config).save_pretrained(tmp_path / "base")
    else:
        config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = stir(build_reward(folder=tmp_path / "base", lora={"enabled": enabled}, fused=True)).eval()
    wanted = model.scores(hollow)
    model.save(tmp_path / "run")
    torch.testing.assert_close(load_reward_model(tmp_path / "run").scores(hollow), wanted, rtol=1e-5, atol=1e-5)
    if not enabled:
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run", pad_token_id=0).eval()
        torch.testing.assert_close(
            theirs(hollow.tokens[None, :9]).logits,
            model.score(model.base.get_decoder()(hollow.tokens[None, :9]).last_hidden_state[:, -1]),
            rtol=1e-5,
            atol=1e-5,
        )


def test_what_a_loaded_model_is(build_reward, stir, ragged, tiny_llama, tmp_path):
    model = stir(build_reward(lora={"dropout": 0.5}))
    model.save(tmp_path)
    loaded = load_reward_model(tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.scores(ragged), loaded.scores(ragged))
    torch.testing.assert_close(loaded.scores(ragged), model.eval().scores(ragged), rtol=1e-5, atol=1e-5)
    half = load_reward_model(tmp_path, dtype="bfloat16")
    assert half.base.dtype == torch.bfloat16
    torch.testing.assert_close(half.scores(ragged), loaded.scores(ragged), rtol=3e-2, atol=3e-2)
    four_bits = load_reward_model(tmp_path, quantization="nf4")
    assert four_bits.backbone.is_quantized
    other = load_reward_model(tmp_path, base=str(tiny_llama(seed=1)))
    assert not torch.allclose(other.scores(ragged), loaded.scores(ragged), atol=1e-2)


def test_what_is_no_reward_model(build, tiny_llama, tmp_path):
    build().save(tmp_path / "dpo")
    for folder in (tmp_path / "dpo", tiny_llama()):
        with pytest.raises(ValueError, match=rf"'{folder}' holds no score head \(score\.weight or v_head\.summary\.we"):
            load_reward_model(folder)
    with pytest.raises(ValueError, match="no folder"):
        load_reward_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_reward_model(tmp_path / "empty")


def test_an_adapter_that_does_not_name_its_base(build_reward, tiny_llama, ragged, tmp_path):
    build_reward().save(tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["base_model_name_or_path"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names a base model; name it with base"):
        load_reward_model(tmp_path)
    assert load_reward_model(tmp_path, base=str(tiny_llama())).scores(ragged).isfinite().all()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(1, 32), r"reads hidden states of size 32, and those of .* have 64: the head belongs to another"),
        (torch.full((1, 64), torch.nan), r"holds numbers that are not finite"),
    ],
)
def test_heads_that_do_not_fit(build_reward, tmp_path, weight, message):
    build_reward().save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(weights | {"base_model.model.score.weight": weight}, tmp_path / "adapter_model.safetensors")
    for load in (load_reward_model, lambda folder: build_reward(adapter=str(folder))):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_a_head_of_another_width_made_by_hand(build_reward):
    backbone = build_reward().backbone
    with pytest.raises(ValueError, match=r"the score head reads 32 numbers, and the backbone '.*' gives 64"):
        RewardModel(backbone, ScoreHead(32, {"score": 1.0}))


@pytest.mark.parametrize("kind", ["peft", "plain", "backbone"])
def test_a_model_of_your_own(tiny_llama, stir, ragged, tmp_path, kind):
    torch.manual_seed(0)
    mine = AutoModelForCausalLM.from_pretrained(tiny_llama())
    if kind == "peft":
        mine = stir(get_peft_model(mine, LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules="all-linear")))
    if kind == "backbone":
        mine = Backbone(mine)
    model = wrap_reward_model(mine, TWO).eval()
    assert (model.backbone if kind == "backbone" else model.backbone.model) is mine
    with torch.no_grad():
        wanted = model.scores(ragged)
    model.save(tmp_path)
    torch.testing.assert_close(load_reward_model(tmp_path).scores(ragged), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": {"enabled": False}}])
def test_what_a_checkpoint_must_hold(build_reward, options):
    model = build_reward(**options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = model.checkpointed_names
    assert trained | {"score.mean", "score.std", "score.num_responses"} <= held <= set(model.state_dict())
    if "lora" not in options:
        assert not any("base_layer" in name or "embed_tokens" in name for name in held)


def test_the_role_comes_back_after_an_exception(build, ragged, monkeypatch):
    backbone = build(reference="none")
    model = RewardModel(backbone, ScoreHead(64, {"score": 1.0}))
    monkeypatch.setattr(model.score, "forward", lambda states: 1 / 0)
    with backbone.role("reference"):
        for score in (model.scores, model.step_scores):
            with pytest.raises(ZeroDivisionError):
                score(ragged)
            assert backbone.acting == "reference"


@torch.no_grad()
def test_on_the_backbone_of_a_policy_it_scores_as_itself(build, build_reward, stir, ragged, tmp_path):
    alone = stir(build_reward(), seed=1).eval()
    alone.save(tmp_path)
    policy = stir(build()).eval()
    states = policy.hidden_states(ragged)
    beside = add_reward_model(policy, tmp_path)
    torch.testing.assert_close(beside.scores(ragged), alone.scores(ragged), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beside.step_scores(ragged), alone.step_scores(ragged), rtol=1e-5, atol=1e-5)
    assert torch.equal(policy.hidden_states(ragged), states)


@torch.no_grad()
def test_a_bias_and_no_lora_on_a_base_that_is_a_reward_model(build_reward, ragged, tmp_path):
    first = build_reward(lora={"enabled": False})
    first.score.bias = torch.nn.Parameter(torch.tensor([2.0]))
    first.save(tmp_path)
    again = build_reward(folder=tmp_path)
    torch.testing.assert_close(again.scores(ragged), first.scores(ragged), rtol=1e-5, atol=1e-5)
    assert again.score.bias.requires_grad


def test_it_is_built_on_the_name_of_a_folder(tiny_llama):
    from lit_rlhf.models.options import BackboneConfig

    with pytest.raises(ValueError, match="no folder"):
        build_reward_model(BackboneConfig(str(tiny_llama() / "gone")), {"score": 1.0})
