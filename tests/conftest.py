"""What every test shares: one thread, no network, a tiny tokenizer, a tiny Llama.

transformers is imported inside the fixtures that need it, so that the tests of the losses start in two seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]

SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "How many legs does a spider have? A spider has eight legs.",
    "Please tell me a short story. Once upon a time there was a little fox who liked the rain.",
    "Thank you very much, that was a kind and helpful answer. I am sorry, I do not know that.",
)

SPECIAL = {"pad_token_id": "<pad>", "bos_token_id": "<s>", "eos_token_id": "</s>"}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token if message['role'] == 'assistant' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: run with --slow"
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Every test draws the same numbers, whichever tests ran before it in its process."""
    torch.manual_seed(0)


def _as_rank(rank: int, num_ranks: int, port: int, folder: Path, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    ours = {"LOCAL_RANK": rank, "RANK": rank, "NODE_RANK": 0, "GROUP_RANK": 0, "WORLD_SIZE": num_ranks}
    os.environ.update({name: str(value) for name, value in {**ours, "LOCAL_WORLD_SIZE": num_ranks}.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        torch.save(work(rank, *arguments), folder / f"rank{rank}.pt")
    except BaseException:
        (folder / f"rank{rank}.txt").write_text(traceback.format_exc())
        raise


@pytest.fixture
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Runs ``work(rank, *arguments)`` in several processes, in which a Trainer joins the others; what each returns.

    Tensors, numbers, texts and containers of them may be returned.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")

    def run(work: Callable[..., Any], *arguments: Any, num_ranks: int = 2, seconds: float = 40) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        places = [(rank, num_ranks, port, folder, work, arguments) for rank in range(num_ranks)]
        processes = [context.Process(target=_as_rank, args=place) for place in places]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            process.kill()
        told = "\n".join(file.read_text() for file in sorted(folder.glob("*.txt")))
        assert [process.exitcode for process in processes] == [0] * num_ranks, told
        return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(num_ranks)]

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; the test is skipped where it is not there."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder of real data, ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 320 tokens with distinct bos, eos and pad, chat markers and a chat template.

    It adds <s> before a text, as Llama's does. Copy it before changing it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Factory of folders with a random 2-layer Llama (hidden 64, grouped queries) and ``tiny_tokenizer`` beside it.

    ``tiny_llama()`` gives the same folder every time; ``tiny_llama(seed=1, num_hidden_layers=3)`` another one. Do not
    write into it.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    folders: dict[tuple[tuple[str, Any], ...], Path] = {}
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }

    def make(seed: int = 0, **overrides: Any) -> Path:
        key = (("seed", seed), *sorted(overrides.items()))
        if key not in folders:
            tokens = {name: tiny_tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
            config = LlamaConfig(**{"vocab_size": len(tiny_tokenizer), **tokens, **shape, **overrides})
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = LlamaForCausalLM(config)
            folders[key] = tmp_path_factory.mktemp("tiny_llama")
            model.save_pretrained(folders[key])
            tiny_tokenizer.save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random LLaVA, its processor and tokenizer: 16 image tokens for each picture. Do not write to it.

    Others are built by ``tests/tiny_vision.py``.
    """
    from tests.tiny_vision import make_llava

    return make_llava(tmp_path_factory.mktemp("tiny_llava"))


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Qwen2-VL: as many image tokens as a picture is large. Do not write to it."""
    from tests.tiny_vision import make_qwen2_vl

    return make_qwen2_vl(tmp_path_factory.mktemp("tiny_qwen2_vl"))


@pytest.fixture(scope="session")
def tiny_mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama 3.2 Vision: one image token for each picture. Do not write to it."""
    from tests.tiny_vision import make_mllama

    return make_mllama(tmp_path_factory.mktemp("tiny_mllama"))
