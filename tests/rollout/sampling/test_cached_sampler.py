"""The default sampler: tokens of a greedy search, log-probabilities of training, and what a response depends on."""

from itertools import groupby

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lit_rlhf.models.building import wrap_model
from lit_rlhf.models.layers.cached_attention import CachedRows
from lit_rlhf.models.layers.lora_linear import Projection
from lit_rlhf.models.layers.step_parts import StepParts
from lit_rlhf.rollout.sampling import forest_decoder
from lit_rlhf.rollout.sampling.cached_sampler import CachedSampler

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ENDS)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)),
    "gemma2 with soft caps and a window": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=7, final_logit_softcapping=2.0, attn_logit_softcapping=2.0)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, sliding_window=None)),
    "bloom, on padded rows": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, **ENDS)
    ),
}


def opinionated(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if "caps" in name:
        model.set_attn_implementation("eager")  # the default of older transformers leaves the soft cap out
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return wrap_model(model, reference="none")


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_generate(name, make_request, responses):
    backbone, request = opinionated(name), make_request(temperature=0.0, max_new_tokens=20, num_responses=2)
    rollouts = CachedSampler()(backbone, request)
    assert backbone.layout == ("padded" if "padded" in name else "forest")
    expected = backbone.generate([prompt.tokens for prompt in request.prompts], 20, stop_tokens=[2], temperature=0.0)
    assert responses(rollouts) == [response for response in expected for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_training(name, temperature, make_request, trainer_logprobs):
    backbone = opinionated(name)
    stops = range(2, 22)
    rollouts = CachedSampler()(backbone, make_request(stop_tokens=stops, temperature=temperature, num_responses=3))
    assert len(set(rollouts.lengths.tolist())) > 2
    expected = trainer_logprobs(backbone, rollouts, temperature)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=1e-5)
    assert not rollouts.logprobs[~rollouts.response_mask].any()
    assert not rollouts.tokens[~rollouts.response_mask].any()


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"attention": "sdpa"}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("role", ["policy", "reference"])
def test_the_role_is_played_in_place(options, role, sampled_backbone, make_request, trainer_logprobs):
    backbone = sampled_backbone(**options)
    tolerance = 0.05 if "dtype" in options else 1e-5
    with backbone.role(role):
        rollouts = CachedSampler()(backbone, make_request(stop_tokens=range(2, 22), num_responses=2))
        expected = trainer_logprobs(backbone, rollouts)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=tolerance)
    other = trainer_logprobs(backbone, rollouts)
    assert torch.allclose(expected, other, atol=0.1) == (role == "policy")


def test_four_bits_are_left_as_they_are(sampled_backbone, make_request, trainer_logprobs):
    backbone = sampled_backbone(quantization="nf4")
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    rollouts = CachedSampler()(backbone, make_request(num_responses=2))
    expected = trainer_logprobs(backbone, rollouts)
    torch.testing.assert_close(rollouts.logprobs[rollouts.response_mask], expected, rtol=0, atol=1e-3)
    assert all(torch.equal(parameter, before[name]) for name, parameter in backbone.named_parameters())


@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}], ids=["float32", "nf4"])
def test_copies_of_weights_change_nothing(options, sampled_backbone, make_request, monkeypatch):
    copied, packed, rooms, make = [], Projection.packed, [], StepParts.__init__
    monkeypatch.setattr(StepParts, "__init__", lambda parts, room: rooms.append(room) or make(parts, room))
    monkeypatch.setattr(Projection, "packed", lambda projection: copied.append(1) or packed(projection))
    backbone, request = sampled_backbone(**options), make_request(stop_tokens=range(2, 30), num_responses=3)
    plain = CachedSampler(max_copy_mib=0)(backbone, request)
    assert not copied
    quick = CachedSampler(max_rows=4, max_copy_mib=3)(backbone, request)
    assert len(copied) == 1 + 7 * backbone.base.config.num_hidden_layers  # once for all batches
    assert rooms == [0, 3 * 2**20]
    assert torch.equal(plain.tokens, quick.tokens)
    torch.testing.assert_close(plain.logprobs, quick.logprobs, rtol=0, atol=1e-5)


CUTS = {
    "two rows at once": ({"max_rows": 2}, None),
    "three rows at once": ({"max_rows": 3}, None),
    "little room": ({"max_cache_tokens": 70}, None),
    "prompts one by one": ({}, 1),
}


@pytest.mark.parametrize("kind", [{}, {"attention": "sdpa"}])
@pytest.mark.parametrize("cut", CUTS)
def test_a_response_does_not_depend_on_the_cut(cut, kind, sampled_backbone, make_request, monkeypatch):
    bounds, prefill = CUTS[cut]
    backbone, request = sampled_backbone(**kind), make_request(stop_tokens=range(2, 30), num_responses=3)
    whole = CachedSampler()(backbone, request)
    if prefill:
        monkeypatch.setattr(forest_decoder, "PREFILL_TOKENS", prefill)
    cut = CachedSampler(**bounds)(backbone, request)
    assert len(set(whole.lengths.tolist())) > 3
    assert torch.equal(whole.tokens, cut.tokens)
    assert torch.equal(whole.finished, cut.finished)
    torch.testing.assert_close(whole.logprobs, cut.logprobs, rtol=0, atol=1e-5)


def test_equal_prompts_need_not_stand_side_by_side(sampled_backbone, make_request, responses):
    backbone, request = sampled_backbone(), make_request(lengths=(6, 6), num_responses=2)
    first, second = request.prompts
    mixed = request._replace(prompts=[first, second, first], seeds=[*request.seeds, 7, 8])
    expected = responses(CachedSampler()(backbone, request))
    assert responses(CachedSampler()(backbone, mixed))[:4] == expected
    alone = request._replace(prompts=[first], seeds=[7, 8])
    assert responses(CachedSampler()(backbone, mixed))[4:] == responses(CachedSampler()(backbone, alone))


def test_a_response_depends_on_its_seed_and_its_prompt_alone(sampled_backbone, make_request, responses):
    backbone, request = sampled_backbone(), make_request(stop_tokens=range(2, 30), num_responses=3)
    together = responses(CachedSampler()(backbone, request))
    backwards = request._replace(prompts=request.prompts[::-1], seeds=request.seeds[::-1])
    turned = responses(CachedSampler()(backbone, backwards))
    assert turned[::-1] == together
    for number, expected in enumerate(together):
        prompt, seed = request.prompts[number // 3], request.seeds[number]
        alone = make_request(prompts=[prompt], seeds=[seed], stop_tokens=range(2, 30))
        assert responses(CachedSampler()(backbone, alone)) == [expected]
    assert len(set(map(tuple, together))) == len(together)


def test_samples_follow_the_distribution(sampled_backbone, make_request):
    """Two tokens from one prompt, drawn 4000 times, against the model's own distribution."""
    count, backbone = 4000, sampled_backbone()
    request = make_request(lengths=(5,), num_responses=count, max_new_tokens=2, temperature=0.3)
    rollouts = CachedSampler(max_rows=count)(backbone, request)
    assert rollouts.tokens.shape == (count, 2)
    row = torch.tensor([request.prompts[0].tokens])
    with torch.no_grad():
        first = torch.softmax(backbone.base(input_ids=row).logits[0, -1] / 0.3, 0)
        likeliest = int(first.argmax())
        row = torch.cat([row, torch.tensor([[likeliest]])], 1)
        second = torch.softmax(backbone.base(input_ids=row).logits[0, -1] / 0.3, 0)
    for probabilities, drawn in (
        (first, rollouts.tokens[:, 0]),
        (second, rollouts.tokens[rollouts.tokens[:, 0] == likeliest, 1]),
    ):
        top = probabilities.topk(8).indices
        expected = torch.cat([probabilities[top], 1 - probabilities[top].sum()[None]]) * len(drawn)
        seen = [(drawn == token).sum() for token in top]
        seen = torch.tensor([*seen, len(drawn) - sum(seen)])
        assert len(drawn) > 30
        assert float(((seen - expected) ** 2 / expected).sum()) < 26.1  # 0.999 quantile at 8 degrees of freedom


def test_no_token_that_the_tokenizer_lacks_is_drawn(sampled_backbone, tiny_llama, make_request, tiny_tokenizer):
    backbone = sampled_backbone(tiny_llama(vocab_size=640))
    rollouts = CachedSampler()(backbone, make_request(num_responses=4))
    assert int(rollouts.tokens.max()) < len(tiny_tokenizer)


@pytest.mark.parametrize("num_responses", [1, 3])
def test_everything_ends_at_once(num_responses, sampled_backbone, make_request):
    request = make_request(stop_tokens=range(320), num_responses=num_responses)
    rollouts = CachedSampler()(sampled_backbone(), request)
    assert rollouts.tokens.shape == (4 * num_responses, 1)
    assert rollouts.finished.all()
    assert rollouts.groups.tolist() == [number for number in range(4) for _ in range(num_responses)]
    assert [prompt.row for prompt, _ in groupby(rollouts.prompts)] == [prompt.row for prompt in request.prompts]


def test_one_token_is_the_limit(sampled_backbone, make_request):
    rollouts = CachedSampler()(sampled_backbone(), make_request(max_new_tokens=1))
    assert rollouts.tokens.shape == (4, 1)
    assert not rollouts.finished.any()


def test_a_response_that_ends_at_the_limit_is_finished(sampled_backbone, make_request, responses):
    backbone = sampled_backbone()
    first = CachedSampler()(backbone, make_request(temperature=0.0, max_new_tokens=3))
    last = responses(first)[0][-1]
    again = CachedSampler()(backbone, make_request(temperature=0.0, max_new_tokens=3, stop_tokens=(2, last)))
    assert first.finished.tolist()[0] is False
    assert again.finished.tolist()[0] is True


def test_strings_end_a_response_and_the_prompt_does_not_count(sampled_backbone, make_request, tiny_tokenizer):
    backbone = sampled_backbone()
    free = CachedSampler()(backbone, make_request(lengths=(9,), temperature=0.0, stop_tokens=(319,)))
    text = tiny_tokenizer.decode(free.tokens[0, 2:5])
    prompts = [
        request._replace(tokens=(*request.tokens, *free.tokens[0, 2:5].tolist())) for request in make_request().prompts
    ]
    request = make_request(lengths=(9,), temperature=0.0, stop_tokens=(319,), stop_strings=[text])
    stopped = CachedSampler()(backbone, request)
    assert text in tiny_tokenizer.decode(stopped.tokens[0])
    assert text not in tiny_tokenizer.decode(stopped.tokens[0, :-1])
    assert stopped.finished.all()
    asked = CachedSampler()(backbone, make_request(prompts=prompts, stop_tokens=(319,), stop_strings=[text]))
    assert (asked.lengths > 1).all()


class Spy:
    """Counts the tokens that caches have room for, and the prompt tokens that are computed."""

    def __init__(self, monkeypatch):
        self.room, self.prompt_tokens, make, prefill = [], 0, CachedRows.__init__, forest_decoder.ForestDecoder._prefill

        def counted(cache, *args):
            make(cache, *args)
            self.room.append(cache.num_tokens)

        def watched(decoder, prompts):
            self.prompt_tokens += sum(len(prompt.tokens) for prompt in prompts)
            return prefill(decoder, prompts)

        monkeypatch.setattr(CachedRows, "__init__", counted)
        monkeypatch.setattr(forest_decoder.ForestDecoder, "_prefill", watched)


def test_a_prompt_is_computed_once(sampled_backbone, make_request, monkeypatch):
    spy = Spy(monkeypatch)
    request = make_request(num_responses=5)
    CachedSampler()(sampled_backbone(), request._replace(prompts=[*request.prompts[:3], request.prompts[1]]))
    assert spy.prompt_tokens == 1 + 40 + 5
    assert spy.room == [3 * 40 + 20 * 12]


@pytest.mark.parametrize("bound", [60, 110, 400])
def test_memory_is_bounded(bound, sampled_backbone, make_request, monkeypatch):
    spy = Spy(monkeypatch)
    CachedSampler(max_cache_tokens=bound)(sampled_backbone(), make_request(num_responses=4))
    assert max(spy.room) <= bound
    assert min(spy.room) < bound


@pytest.mark.parametrize(("bound", "rooms"), [(88, [88]), (87, [76, 52])])
def test_a_prompt_takes_room_once(bound, rooms, sampled_backbone, make_request, monkeypatch):
    spy = Spy(monkeypatch)
    CachedSampler(max_cache_tokens=bound)(sampled_backbone(), make_request(lengths=(40,), num_responses=4))
    assert spy.room == rooms


def test_a_row_leaves_when_it_ends(sampled_backbone, make_request, monkeypatch):
    computed, step = [], forest_decoder.ForestDecoder.step

    def watched(decoder, tokens):
        computed.append(len(tokens))
        step(decoder, tokens)

    monkeypatch.setattr(forest_decoder.ForestDecoder, "step", watched)
    rollouts = CachedSampler()(sampled_backbone(), make_request(stop_tokens=range(2, 30), num_responses=3))
    assert sum(computed) == int(rollouts.lengths.sum()) - 12


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_the_state_of_training_is_left(attention, sampled_backbone, make_request):
    backbone = sampled_backbone(attention=attention)
    backbone.train()
    backbone.base.get_decoder().layers[0].eval()
    modes = [module.training for module in backbone.modules()]
    before, adapters = torch.get_rng_state(), backbone.model.active_adapter
    CachedSampler()(backbone, make_request())
    with torch.no_grad():
        backbone.base.get_decoder().norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"rows\.jsonl:\d: the policy's logits are not finite at token 0"):
        CachedSampler()(backbone, make_request())
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert backbone.model.active_adapter == adapters


def test_what_cannot_be_drawn_is_refused(sampled_backbone, make_request):
    backbone, request = sampled_backbone(), make_request()
    for wrong, message in (
        (request._replace(stop_tokens=[]), "at least one stop token"),
        (request._replace(prompts=[]), "at least one prompt"),
        (request._replace(seeds=[1, 2]), "4 responses needs as many seeds, not 2"),
        (
            request._replace(prompts=[request.prompts[0]._replace(tokens=())] * 4),
            "rows.jsonl:0: the prompt has no tokens",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            CachedSampler()(backbone, wrong)
    for bounds in ({"max_rows": 0}, {"max_cache_tokens": 0}, {"max_copy_mib": -1}):
        with pytest.raises(ValueError, match=r"is (0|-1)"):
            CachedSampler(**bounds)


def test_the_real_small_llama(shared_data, make_request, responses):
    folder = shared_data / "models" / "stories260k-llama"
    backbone = wrap_model(AutoModelForCausalLM.from_pretrained(folder).eval(), reference="none")
    request = make_request(temperature=0.0, max_new_tokens=40)
    request = request._replace(tokenizer=AutoTokenizer.from_pretrained(folder))
    expected = backbone.generate([prompt.tokens for prompt in request.prompts], 40, stop_tokens=[2], temperature=0.0)
    assert responses(CachedSampler()(backbone, request)) == expected
