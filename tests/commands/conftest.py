"""A small preference task, its configuration, and a run that was trained on it from the command line."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from datamodules.forms import read_row
from datamodules.records import BadRowError
from datamodules.sources import Row
from lit_rlhf.cli import main
from lit_rlhf.commands import score
from lit_rlhf.commands.scoring import NotFiniteError, Scored, Scorer
from lit_rlhf.commands.serving.scores.handler import ScoreServer
from lit_rlhf.commands.serving.server import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QUESTIONS = ("capital of France", "legs of a spider", "name of a fox", "colour of rain", "end of a story", "kind word")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 conversational rows: the kind answer is chosen."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is the {question}, number {number}?"}],
            "chosen": [{"role": "assistant", "content": "Thank you, that was a kind question."}],
            "rejected": [{"role": "assistant", "content": "I do not know, go away."}],
        }
        for number in range(4)
        for question in QUESTIONS
    ]
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Path], pairs_file: Path) -> Path:
    """Twelve steps of DPO, validated every three."""
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": "lit_rlhf.DPOModule",
            "init_args": {
                "backbone": {"name_or_path": str(tiny_llama()), "lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "datamodules.PreferenceDataModule",
            "init_args": {
                "train": str(pairs_file),
                "validation": str(pairs_file),
                "predict": str(pairs_file),
                "batch_size": 4,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "lit_rlhf.callbacks.samples.SampleTable",
                    "init_args": {"num_prompts": 2, "max_new_tokens": 8},
                }
            ],
        },
    }
    file = tmp_path_factory.mktemp("config") / "dpo.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def fit(config_file: Path) -> Callable[..., None]:
    """``fit(folder, *words)``: train into a folder, with more words on the command line."""
    return lambda folder, *words: main(
        ["fit", "--config", str(config_file), f"--trainer.default_root_dir={folder}", *words]
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, fit: Callable[..., None]) -> Path:
    """The folder of a run that went through. Do not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    fit(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Path], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Factory of folders with a reward model whose adapter does something. Do not write into them.

    ``reward_folders()`` gives the same folder every time; ``reward_folders(good=1.0, short=-0.5)`` one of two
    objectives. Mean and spread are 0.5 and 2; ``measured=False`` leaves them out.
    """
    from lit_rlhf.models.heads.reward_model import build_reward_model
    from lit_rlhf.models.options import BackboneConfig, LoraOptions

    folders: dict[tuple[bool, tuple[tuple[str, float], ...]], Path] = {}

    def make(measured: bool = True, **objectives: float) -> Path:
        key = measured, tuple(objectives.items())
        if key not in folders:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                config = BackboneConfig(str(tiny_llama()), lora=LoraOptions(r=4))
                model = build_reward_model(config, objectives or {"score": 1.0})
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.normal_(parameter, std=0.1)
            if measured:
                model.score.measure(0.5, 2.0, 100)
            folders[key] = tmp_path_factory.mktemp("reward")
            model.save(folders[key])
            tiny_tokenizer.save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def scorer_of() -> Callable[..., Scorer]:
    """``scorer_of(folder, *words)``: the scorer of ``lit-rlhf score FOLDER WORDS``."""

    def make(folder: Path, *words: str) -> Scorer:
        parser = argparse.ArgumentParser()
        score.add_arguments(parser)
        args = parser.parse_args([str(folder), *words])
        return score.open_scorer(args, score.open_data(args))

    return make


@pytest.fixture(scope="session")
def policy_folders(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Callable[..., Path], tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Factory of folders with a policy whose adapter does something. Do not write into them.

    ``policy_folders("sft")`` gives the same folder every time; ``policy_folders("dpo", base=...)`` one on another base.
    """
    from lit_rlhf.models.building import build_backbone
    from lit_rlhf.models.options import BackboneConfig, LoraOptions

    folders: dict[tuple[str, Path], Path] = {}

    def make(name: str, base: Path | None = None) -> Path:
        key = name, base or tiny_llama()
        if key not in folders:
            with torch.random.fork_rng():
                torch.manual_seed(sum(name.encode()))
                backbone = build_backbone(BackboneConfig(str(key[1]), lora=LoraOptions(r=4)), reference="none")
                for path, parameter in backbone.named_parameters():
                    if "lora_B" in path:
                        torch.nn.init.normal_(parameter, std=0.3)
            folders[key] = tmp_path_factory.mktemp("policies") / name
            backbone.save(folders[key])
            tiny_tokenizer.save_pretrained(folders[key])
        return folders[key]

    return make


@pytest.fixture
def voices_of(policy_folders: Callable[..., Path]) -> Callable[..., Any]:
    """``voices_of("sft", "dpo")``: the voices of these policies; words that begin with a dash are passed on."""
    from lit_rlhf.commands.speaking import arguments
    from lit_rlhf.commands.speaking.voices import open_voices

    def make(*names: Any) -> Any:
        parser = argparse.ArgumentParser()
        arguments.add_voices(parser)
        words = [str(policy_folders(name)) if name in ("sft", "dpo", "ppo") else str(name) for name in names]
        return open_voices(parser.parse_args(words))

    return make


class LengthScorer:
    """Stands in for a scorer: a score is the number of characters of the response.

    ``nan`` as a response gets no number, ``boom`` raises, and nothing is scored before ``go`` is set.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.go = Event()
        self.go.set()
        self.begun = Event()
        self.model = self

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def normalise(self, scores: Sequence[float]) -> list[float]:
        return [score / 10 for score in scores]

    def __call__(self, rows: Sequence[Row]) -> list[Scored]:
        self.begun.set()
        assert self.go.wait(10)
        self.calls.append(len(rows))
        return list(map(self._one, rows))

    def _one(self, row: Row) -> Scored:
        try:
            (record,) = read_row(row.decode())
        except BadRowError as error:
            return Scored(row, None, [], {}, error=error)
        if not record.responses:
            return Scored(row, record, [], {}, error=BadRowError("no_response", "no response"))
        texts = [str(response.text) for response in record.responses]
        if "boom" in texts:
            raise RuntimeError("boom")
        if "template" in texts:
            raise ValueError(f"{row.address}: no chat template")
        if "nan" in texts:
            return Scored(row, record, [], {}, error=NotFiniteError("not_finite", "the model gives it the score nan"))
        scores = [float(len(text)) for text in texts]
        return Scored(row, record, scores, {"score": scores}, ("prompt",) if record.prompt == "long" else ())


@pytest.fixture
def length_scorer() -> LengthScorer:
    return LengthScorer()


@pytest.fixture
def score_server(length_scorer: LengthScorer) -> Iterator[Callable[..., ScoreServer]]:
    """``score_server(token=..., timeout=...)``: a server of the length scorer on a free port, in a thread."""
    servers = []

    def start(**settings: Any) -> ScoreServer:
        server = ScoreServer(length_scorer, Settings("mine", port=0, **settings))
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    length_scorer.go.set()
    for server in servers:
        server.stop()


@pytest.fixture
def ask() -> Callable[..., tuple[int, Any, dict[str, str]]]:
    """``ask(server, method, path, body, **headers)``: status, what was answered, and the headers of the answer."""

    def ask(
        server: ScoreServer, method: str = "POST", path: str = "/score", body: Any = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(text) if text else None, dict(answer.headers)

    return ask
