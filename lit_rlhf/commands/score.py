"""Score responses with a reward model.

  lit-rlhf score runs/reward pairs.jsonl --out scores.jsonl
  lit-rlhf score runs/reward --prompt "1 + 1 =" --response " 2"
  lit-rlhf score runs/reward --serve --port 8190

RUN is the folder of a run, or any other reward model: a folder or hub name of a PEFT adapter for sequence
classification, a Hugging Face sequence classifier, or a value-head model of LLaMA-Factory or TRL. Rows are of any form
that training reads; each gives one JSON line, in the order of the files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_rlhf.commands import finished_run
from lit_rlhf.commands.quiet import quieten
from lit_rlhf.commands.run_folder import CONFIG
from lit_rlhf.commands.serving import server
from lit_rlhf.embedded import resolve

if TYPE_CHECKING:
    from datamodules.preference import PreferenceDataModule
    from lit_rlhf.commands.scoring import Scorer

_LIMITS = {"max_length": 1024, "truncation": "prompt_left"}
"""What applies where neither the command line nor the configuration of the run says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    finished_run.add_arguments(parser)
    parser.add_argument("files", metavar="FILE", nargs="*", help="rows: files, globs, folders or hub names")
    parser.add_argument("--out", type=Path, help="file of JSON lines to write, instead of showing them")
    parser.add_argument("--prompt", help="a prompt as plain text, with --response instead of files")
    parser.add_argument("--response", help="the response to it")
    parser.add_argument(
        "--normalise", action="store_true", help="scores of mean 0 and spread 1 on the model's validation data"
    )
    parser.add_argument("--quantization", default="none", choices=("none", "nf4", "int8"), help="of the base")
    parser.add_argument("--tokenizer", help="folder or hub name, if none lies beside the model")
    parser.add_argument("--chat_template", help="Jinja template or its path, instead of the tokenizer's own")
    parser.add_argument("--max_length", type=int, help="most tokens of prompt and response (as in training, else 1024)")
    parser.add_argument(
        "--truncation",
        choices=("prompt_left", "response_right", "drop"),
        help="what happens to longer rows (as in training, else prompt_left)",
    )
    parser.add_argument("--token_budget", type=int, default=4096, help="tokens of a forward pass (default 4096)")
    parser.add_argument(
        "--on_bad_row", default="raise", choices=("raise", "drop"), help="stop at a row that cannot be used, or go on"
    )
    parser.add_argument("--serve", action="store_true", help="answer requests over HTTP")
    server.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Score files or one response, or serve.

    Raises:
        ValueError: if there is nothing to score, the output exists, the model does not load, a row cannot be used, or
            the model gives one no number.
    """
    texts = [text for text in (args.prompt, args.response) if text is not None]
    if sum(map(bool, (args.files, texts, args.serve))) != 1 or len(texts) == 1:
        raise ValueError("nothing to score: give files, or --prompt with --response, or --serve, and one of them alone")
    if args.serve and (args.out or args.normalise):
        raise ValueError("--out and --normalise do not go with --serve: each request says what it wants")
    if args.out is not None and args.out.exists():
        raise ValueError(f"--out={args.out} exists already; choose another file or remove it")
    settings = server.read_settings(args, _name_of(args.run)) if args.serve else None
    quieten()
    from lit_rlhf.commands import score_lines

    data = open_data(args)
    sources = data.sources("predict") if args.files else []
    scorer = open_scorer(args, data)
    if args.normalise:
        scorer.normalise([0.0])  # refuses before the first row
    if settings is not None:
        from lit_rlhf.commands.serving.scores.handler import serve_scores

        serve_scores(scorer, settings)
    elif texts:
        print(json.dumps(score_lines.quick(scorer, *texts, normalise=args.normalise)))  # noqa: T201
    else:
        rows = chain.from_iterable(source.read() for source in sources)
        score_lines.write(scorer, rows, args.out, drop=args.on_bad_row == "drop", normalise=args.normalise)


def open_data(args: argparse.Namespace) -> PreferenceDataModule:
    """The files of the command line, read as for training.

    Raises:
        ValueError: if the tokenizer is not there.
    """
    from datamodules.preference import PreferenceDataModule

    try:
        tokenizer = finished_run.load_tokenizer(Path(resolve(args.tokenizer or str(args.run))))
    except ValueError as error:
        raise ValueError(f"{error}; --tokenizer names the folder or hub name of one") from error
    files: Any = [resolve(file) for file in args.files]
    return PreferenceDataModule(
        predict=files,
        kind="graded",
        tokenizer=tokenizer,
        chat_template=args.chat_template,
        token_budget=args.token_budget,
        **limits(args.run, vars(args)),
    )


def open_scorer(args: argparse.Namespace, data: PreferenceDataModule) -> Scorer:
    """The reward model of the command line.

    Raises:
        ValueError: if it is not there, or is no reward model.
    """
    import torch

    from lit_rlhf.commands.scoring import Scorer
    from lit_rlhf.models.heads.reward_model import load_reward_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = resolve(args.base) if args.base else None
    model = load_reward_model(resolve(str(args.run)), base, args.dtype, args.quantization, device)
    return Scorer(model.to(device), data.task(), data.token_budget)


def _name_of(run: Path) -> str:
    """What a model is called in answers."""
    return run.resolve().name if run.is_dir() else str(run)


def limits(run: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """How long a row may be: as is said, else as the configuration of the run says, else the usual.

    Args:
        run: its folder.
        said: ``max_length`` and ``truncation``, among other things; None or nothing = not said.
    """
    file = run / CONFIG
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    trained = ((config or {}).get("data") or {}).get("init_args") or {}
    said = {name: value for name, value in said.items() if value is not None}
    return {name: said.get(name, trained.get(name, usual)) for name, usual in _LIMITS.items()}
