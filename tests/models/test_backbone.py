"""One backbone, many roles: exact numbers and gradients in every variety, and references that stand still."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from lit_rlhf.models import adapters
from lit_rlhf.models.building import build_backbone, build_policy, wrap_model
from lit_rlhf.models.layers.attention import FOREST_ATTENTION
from lit_rlhf.models.options import BackboneConfig, LoraOptions

EXACT = {
    "plain": {},
    "checkpointed": {"gradient_checkpointing": True},
    "nf4": {"quantization": "nf4"},
    "nf4_checkpointed": {"quantization": "nf4", "gradient_checkpointing": True},
    "dora": {"lora": {"use_dora": True}},
    "dora_checkpointed": {"lora": {"use_dora": True}, "gradient_checkpointing": True},
    "rslora": {"lora": {"use_rslora": True}},
    "pissa": {"lora": {"init": "pissa"}},
    "olora": {"lora": {"init": "olora"}},
    "gaussian": {"lora": {"init": "gaussian"}},
    "orthogonal": {"lora": {"init": "orthogonal"}},
    "head_saved": {"lora": {"modules_to_save": ["lm_head"]}},
    "head_lora": {"lora": {"target_modules": ["q_proj", "lm_head"]}},
    "full": {"lora": {"enabled": False}},
    "full_checkpointed": {"lora": {"enabled": False}, "gradient_checkpointing": True},
}


def gradients(backbone, logprobs):
    """Gradients of an uneven sum, by parameter."""
    backbone.zero_grad()
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return {name: p.grad.clone() for name, p in backbone.model.named_parameters() if p.requires_grad}


def rows_apart(backbone, forest, row_logprobs):
    """The oracle on the same weights: the model's own eager attention, one row per sequence."""
    backbone.base.set_attn_implementation("eager")
    try:
        logprobs = row_logprobs(backbone.model, forest)
        return logprobs.detach(), gradients(backbone, logprobs)
    finally:
        backbone.base.set_attn_implementation(FOREST_ATTENTION)


def relative(ours, wanted):
    difference = sum(float((ours[name].float() - wanted[name].float()).square().sum()) for name in wanted)
    return (difference / sum(float(wanted[name].float().square().sum()) for name in wanted)) ** 0.5


def compare(backbone, forest, row_logprobs, tolerance):
    expected, wanted = rows_apart(backbone, forest, row_logprobs)
    logprobs = backbone.token_logprobs(forest).logprobs
    assert backbone.layout == "forest"
    assert float((logprobs - expected).norm() / expected.norm()) < tolerance
    ours = gradients(backbone, logprobs)
    assert all(gradient.any() for gradient in wanted.values())
    assert relative(ours, wanted) < tolerance


@pytest.mark.parametrize("kind", EXACT)
def test_logprobs_and_gradients(build, stir, ragged, row_logprobs, kind):
    compare(stir(build(**EXACT[kind])), ragged, row_logprobs, tolerance=1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"quantization": "int8"}, 0.1),  # a token's neighbours share its rounding
        ({"dtype": "bfloat16"}, 0.05),
        ({"dtype": "float16"}, 0.005),
        ({"dtype": "bfloat16", "quantization": "nf4"}, 0.05),
        ({"dtype": "bfloat16", "gradient_checkpointing": True}, 0.05),
    ],
)
def test_rounded_logprobs_and_gradients(build, stir, ragged, row_logprobs, options, tolerance):
    compare(stir(build(**options), scale=0.02), ragged, row_logprobs, tolerance)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_real_pairs_on_a_real_model(shared_data, stir, real_pairs, row_logprobs, checkpointed, quantization):
    config = BackboneConfig(
        str(shared_data / "models" / "stories260k-llama"),
        quantization=quantization,
        gradient_checkpointing=checkpointed,
        lora=LoraOptions(r=4, alpha=8),
    )
    compare(stir(build_backbone(config), scale=0.05), real_pairs, row_logprobs, tolerance=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_padded_layout_gives_the_same(build, stir, ragged, attention):
    forest, padded = (stir(build(attention=kind, lora={"enabled": False})) for kind in ("auto", attention))
    ours, theirs = (backbone.token_logprobs(ragged).logprobs for backbone in (forest, padded))
    assert (forest.layout, padded.layout) == ("forest", "padded")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert relative(gradients(forest, ours), gradients(padded, theirs)) < 1e-5


SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64), "forest"),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig(**SMALL, **HEADS, **EXPERTS, head_dim=8), "padded"),
    "mamba": (MambaForCausalLM, MambaConfig(**SMALL, state_size=4), "padded"),
    "bamba": (
        BambaForCausalLM,
        BambaConfig(
            **SMALL, **HEADS, attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1
        ),
        "padded",
    ),
    "phimoe_window": (PhimoeForCausalLM, PhimoeConfig(**SMALL, **HEADS, **EXPERTS, sliding_window=64), "padded"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_cannot_take_a_forest_are_computed_on_padded_rows(name, ragged, row_logprobs, make_forest):
    kind, config, layout = OTHERS[name]
    torch.manual_seed(0)
    plain = kind(config).eval()
    backbone = wrap_model(copy.deepcopy(plain), reference="none")
    long = [3 + at * 7 % 300 for at in range(90)]
    trees = [[([9, 8, 7], -1), ([*range(20, 29)], 0), ([5], 0)], [(long, -1)]]
    forest = ragged if name == "gpt2" else make_forest(*trees)
    with torch.no_grad():
        expected, ours = row_logprobs(plain, forest), backbone.token_logprobs(forest).logprobs
    assert backbone.layout == layout
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if layout == "padded":
        refused = wrap_model(copy.deepcopy(plain), reference="none")
        refused.attention = "forest"
        with pytest.raises(ValueError, match=r"backbone\.attention is 'forest', but a "):
            refused.prepare()


def test_dropout_does_not_confuse_the_choice_of_layout(build, stir, tmp_path):
    stir(build(), scale=0.5).save(tmp_path)
    backbone = build(adapter=str(tmp_path), lora={"dropout": 0.9})
    state = torch.get_rng_state()
    backbone.prepare()
    assert backbone.layout == "forest"
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training


def test_a_token_outside_the_embedding(build, make_forest):
    with pytest.raises(ValueError, match=r"token id 320 lies outside the embedding of 320 rows: the tokenizer"):
        build().hidden_states(make_forest([([1, 320], -1)]))


REFERENCES = {
    "fresh": {},
    "dora": {"lora": {"use_dora": True}},
    "pissa": {"lora": {"init": "pissa"}},
    "olora": {"lora": {"init": "olora"}},
    "head_saved": {"lora": {"modules_to_save": ["lm_head"]}},
    "nf4": {"quantization": "nf4"},
    "full": {"lora": {"enabled": False}},
    "full_bf16": {"lora": {"enabled": False}, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("reference", ["fixed", "moving"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_the_reference_is_the_model_that_was_loaded(build, stir, ragged, kind, reference):
    backbone = build(**REFERENCES[kind], reference=reference)
    backbone.eval()
    plain = build(**{**REFERENCES[kind], "lora": {"enabled": kind in ("nf4",)}}, reference="none").eval()
    tolerance = {"rtol": 1e-5, "atol": 2e-5} if backbone.base.dtype == torch.float32 else {"rtol": 0, "atol": 0}
    for _ in range(2):
        with backbone.role("reference"):
            found = backbone.token_logprobs(ragged).logprobs.detach()
        torch.testing.assert_close(found, plain.token_logprobs(ragged).logprobs.detach(), **tolerance)
        stir(backbone, scale=0.2)
    assert float((backbone.token_logprobs(ragged).logprobs - found).abs().max()) > 0.01


def test_at_the_start_policy_and_reference_agree_to_the_bit(build, ragged):
    backbone = build(lora={"dropout": 0.5})
    ours = backbone.token_logprobs(ragged).logprobs
    with backbone.role("reference"):
        assert torch.equal(backbone.token_logprobs(ragged).logprobs, ours)


def test_roles_nest_and_come_back_after_an_exception(build, stir, ragged):
    backbone = stir(build(reference="moving")).eval()
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    ours = backbone.token_logprobs(ragged).logprobs.detach()
    with backbone.role("reference"):
        theirs = backbone.token_logprobs(ragged).logprobs.detach()
        with backbone.role("policy"):
            assert torch.equal(backbone.token_logprobs(ragged).logprobs, ours)
        assert torch.equal(backbone.token_logprobs(ragged).logprobs, theirs)
        with pytest.raises(RuntimeError, match="planted"), backbone.role("policy"):
            raise RuntimeError("planted")
        assert torch.equal(backbone.token_logprobs(ragged).logprobs, theirs)
        assert [name for name, parameter in backbone.named_parameters() if parameter.requires_grad] == trained
    assert not torch.equal(theirs, ours)
    assert torch.equal(backbone.token_logprobs(ragged).logprobs, ours)
    assert [name for name, parameter in backbone.named_parameters() if parameter.requires_grad] == trained


def test_the_backward_pass_may_come_after_the_other_role(build, stir, ragged):
    """Checkpointed layers are computed again in the backward pass: as the role that they were computed as."""
    torch.manual_seed(0)
    plain = build()
    checkpointed = build(gradient_checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    for backbone in (plain, checkpointed):
        stir(backbone)
    found = []
    for backbone in (plain, checkpointed):
        logprobs = backbone.token_logprobs(ragged).logprobs
        with backbone.role("reference"), torch.no_grad():
            backbone.token_logprobs(ragged)
        found.append(gradients(backbone, logprobs))
    assert relative(*found) < 1e-5


def test_roles_that_are_not_there(build):
    with (
        pytest.raises(ValueError, match="no role 'judge'; there are 'policy', 'reference', 'reward', 'critic'"),
        build().role("judge"),
    ):
        pass
    alone = build(lora={"enabled": False}, reference="none")
    with pytest.raises(ValueError, match="it has no reference"), alone.role("reference"):
        pass


@pytest.mark.parametrize("kind", ["fresh", "pissa", "full", "head_saved"])
def test_a_moving_reference(build, stir, kind):
    backbone = stir(build(**REFERENCES[kind], reference="moving"))
    names = dict(backbone.named_parameters())
    if kind == "full":
        twins = {name: name.replace("reference_model.", "model.") for name in names if "reference_model" in name}
    else:
        twins = {name: name.replace(".reference.", ".policy.") for name in names if ".reference." in name}
    before = {name: names[name].clone() for name in names}
    backbone.move_reference(0.25)
    assert twins
    for theirs, ours in twins.items():
        torch.testing.assert_close(names[theirs], 0.75 * before[theirs] + 0.25 * before[ours])
        assert torch.equal(names[ours], before[ours])
        assert not names[theirs].requires_grad


def test_the_base_cannot_move(build):
    with pytest.raises(ValueError, match="the frozen base, which cannot move"):
        build().move_reference(0.5)


@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": {"enabled": False}}])
def test_what_a_checkpoint_holds(build, options):
    backbone = build(**options, reference="moving")
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    held = backbone.checkpointed_names
    assert trained < held <= set(backbone.state_dict())
    if options.get("lora"):
        assert held == set(backbone.state_dict())
    else:
        assert held - trained == {name.replace(".policy.", ".reference.") for name in trained}


def test_full_weights_are_saved_as_a_model(build, stir, stock, ragged, row_logprobs, tmp_path):
    backbone = stir(build(lora={"enabled": False}))
    backbone.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    expected = row_logprobs(stock(tmp_path), ragged)
    torch.testing.assert_close(backbone.token_logprobs(ragged).logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_4_or_8_bit_run_saves_and_goes_on(build, stir, ragged, tmp_path, kind):
    first = stir(build(quantization=kind)).eval()
    first.save(tmp_path)
    second = build(quantization=kind, adapter=str(tmp_path)).eval()
    ours = first.token_logprobs(ragged).logprobs
    assert torch.equal(second.token_logprobs(ragged).logprobs, ours)
    with second.role("reference"):
        assert torch.equal(second.token_logprobs(ragged).logprobs, ours)


def test_fingerprints(build, stir, tiny_llama, tmp_path):
    backbone = build()
    reference = backbone.fingerprint("reference")
    assert build(lora={"r": 2}).fingerprint("reference") == reference
    assert build(folder=tiny_llama(seed=1)).fingerprint("reference") != reference
    assert build(quantization="nf4").fingerprint("reference") != reference
    policy = backbone.fingerprint("policy")
    stir(backbone)
    assert backbone.fingerprint("reference") == reference
    assert backbone.fingerprint("policy") != policy
    backbone.save(tmp_path)
    begun = build(adapter=str(tmp_path))
    other = begun.fingerprint("reference")
    assert other not in (reference, policy)
    stir(begun)
    assert begun.fingerprint("reference") == other


def test_answers(build, stir, stock, tmp_path):
    backbone = stir(build(lora={"dropout": 0.5}))
    prompts = [[1, 40, 41], [1, 50, 51, 52, 53]]
    greedy = backbone.generate(prompts, 6, stop_tokens=[2], temperature=0)
    assert backbone.training
    assert [len(answer) for answer in greedy] == [6, 6]
    alone = [backbone.generate([prompt], 6, stop_tokens=[2], temperature=0)[0] for prompt in prompts]
    assert greedy == alone, "padding changes nothing"
    stop = greedy[0][2]
    assert backbone.generate(prompts, 6, stop_tokens=[stop], temperature=0)[0] == greedy[0][: greedy[0].index(stop) + 1]
    with backbone.role("reference"):
        assert backbone.generate(prompts, 6, stop_tokens=[2], temperature=0) != greedy


def test_samples_are_seeded_and_leave_the_random_state_alone(build):
    backbone = build()
    state = torch.get_rng_state()
    first, second, third = (
        backbone.generate([[1, 40]], 12, stop_tokens=[2], seed=seed, top_p=0.9) for seed in (1, 1, 2)
    )
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_that_cannot_be_answered(build):
    for prompts, stops in (([[1], []], [2]), ([[1]], [])):
        with pytest.raises(ValueError, match="at least one token and at least one stop token"):
            build().generate(prompts, 4, stop_tokens=stops)


READS = {
    "plain": {},
    "fused": {"fused": True},
    "checkpointed": {"fused": True, "gradient_checkpointing": True},
    "dora": {"fused": True, "lora": {"use_dora": True}},
    "padded": {"attention": "eager"},
}


@pytest.mark.parametrize("read", ["predictors", "ends"])
@pytest.mark.parametrize("way", READS)
@pytest.mark.parametrize("leaves", ["ragged", "hollow"])
def test_what_is_read_is_what_all_tokens_give(build, stir, request, leaves, way, read):
    """Also where leaves are empty, in values and in gradients."""
    forest = request.getfixturevalue(leaves)
    backbone = stir(build(**READS[way], reference="none")).eval()
    rows = forest.predictors if read == "predictors" else torch.tensor(forest.ends)
    found = []
    for states in (backbone.hidden_states(forest)[rows], backbone.hidden_states(forest, read=read)):
        backbone.zero_grad()
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append((states.detach(), {n: p.grad.clone() for n, p in backbone.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=1e-5)
    assert relative(found[1][1], found[0][1]) < 1e-5


def test_the_reward_role(build, stir, ragged):
    """What is trained, where there is no adapter of that name."""
    backbone = stir(build(reference="none")).eval()
    states = backbone.hidden_states(ragged)
    with backbone.role("reward"):
        assert torch.equal(backbone.hidden_states(ragged), states)
    whole = build(lora={"enabled": False}, reference="none")
    with whole.role("reward"):
        assert whole.base is whole.model


@torch.no_grad()
@pytest.mark.parametrize("own", [False, True])
def test_the_critic_role(build, stir, ragged, own):
    """The adapter of that name where there is one, the policy where there is none; a checkpoint holds it."""
    backbone = stir(build(reference="moving")).eval()
    policy = backbone.token_logprobs(ragged).logprobs
    if own:
        adapters.add_fresh_adapter(backbone.model, "policy", "critic")
        stir(backbone, seed=1)
        policy = backbone.token_logprobs(ragged).logprobs
    with backbone.role("reference"), backbone.role("critic"):
        assert torch.equal(backbone.token_logprobs(ragged).logprobs, policy) == (not own)
    assert bool([name for name in backbone.checkpointed_names if "critic" in name]) == own


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_logprobs_at_a_temperature(build, stir, ragged, stock, tiny_llama, temperature):
    """Against the logits of the model itself, divided by it; states that are known already are not computed again."""
    backbone = stir(build(lora={"enabled": False})).eval()
    plain = stock(tiny_llama())
    plain.load_state_dict(backbone.model.state_dict())
    said = backbone.token_logprobs(ragged, with_entropy=True, temperature=temperature)
    states = backbone.hidden_states(ragged, read="predictors")
    again = backbone.logprobs_of(states, ragged, with_entropy=True, temperature=temperature)
    logprobs = (plain.lm_head(states) / temperature).log_softmax(-1)
    expected = logprobs.gather(1, ragged.tokens[ragged.targets][:, None])[:, 0]
    for ours in (said, again):
        torch.testing.assert_close(ours.logprobs, expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(ours.entropy, -(logprobs.exp() * logprobs).sum(-1), rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_a_reference_that_is_another_model(build, ragged, tiny_llama):
    """Put there after the layout was chosen, it takes part in it all the same."""
    other = build(tiny_llama(seed=1), lora={"enabled": False}, reference="none")
    backbone = build(reference="none")
    expected, ours = (model.token_logprobs(ragged).logprobs for model in (other, backbone))
    config = BackboneConfig(str(tiny_llama(seed=1)), fused=False)
    backbone = build_policy(backbone, config)
    with backbone.role("reference"):
        torch.testing.assert_close(backbone.token_logprobs(ragged).logprobs, expected)
    assert torch.equal(backbone.token_logprobs(ragged).logprobs, ours)
