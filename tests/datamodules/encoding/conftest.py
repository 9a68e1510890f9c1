"""Tokenizers made on the spot, with chat templates in the spirit of those in the wild."""

from __future__ import annotations

import copy
import json

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Strips, folds the system message into the first turn, writes no header before an answer.
LLAMA2 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content.strip() + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ ns.system }}{{ m.content.strip() }} [/INST]"
    "{% set ns.system = '' %}{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}<start_of_turn>{{ {'assistant': 'model'}.get(m.role, m.role) }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Thoughts are kept, or put in empty, after the last question only; answers to tools read otherwise.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set text = m.content or '' %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n"
    "{% endif %}{{ text }}{% for call in m.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Asks for thoughts, and drops them from what was answered.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Puts the system message before the last question if that is the last message; ids of calls must have nine letters.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {% if loop.last %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}{% for call in m.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('bad id') }}"
    "{% endif %}[TOOL_CALLS] [{{ call.function | tojson }}]{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
NO_STOP = (
    "{% for m in messages %}{{ 'Human' if m.role == 'user' else 'Answer' }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
TEMPLATES = {name.lower(): text for name, text in globals().items() if name.isupper()}
SPECIAL = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>"),
    *("<end_of_turn>", "<|User|>", "<|Assistant|>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """A copy of the tiny tokenizer, free to be changed."""
    return copy.deepcopy(tiny_tokenizer)


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_tokenizer):
    """Factory of tokenizers by the name of their template."""

    def make(name):
        made = copy.deepcopy(tiny_tokenizer)
        made.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
        made.chat_template = TEMPLATES[name]
        return made

    return make


@pytest.fixture(scope="session")
def metaspace_tokenizer():
    """A SentencePiece-like BPE with byte fallback, in which a space begins the next word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(["the fox likes rain ", "a little fox ", "thank you very much "], trainer)
    whole = json.loads(bpe.to_str())
    whole["added_tokens"] = whole["added_tokens"][:3]  # a byte is no special token
    bpe = Tokenizer.from_str(json.dumps(whole))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = LLAMA2
    return tokenizer


@pytest.fixture(scope="session")
def slow_tokenizer():
    """A tokenizer of bytes in plain Python, without offsets; it adds no beginning of sequence."""
    from transformers.tokenization_python import PythonBackend

    class Bytes(PythonBackend):
        vocab_size = 256

        def get_vocab(self):
            return {**{f"<0x{byte:02X}>": byte for byte in range(256)}, **self.added_tokens_encoder}

        def _tokenize(self, text):
            return [f"<0x{byte:02X}>" for byte in text.encode()]

        def _convert_token_to_id(self, token):
            return int(token[3:5], 16)

        def _convert_id_to_token(self, index):
            return f"<0x{index:02X}>"

        def convert_tokens_to_string(self, tokens):
            letters = (bytes([int(token[3:5], 16)]) if token.startswith("<0x") else token.encode() for token in tokens)
            return b"".join(letters).decode(errors="replace")

    tokenizer = Bytes(bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    tokenizer.chat_template = CHATML
    return tokenizer
