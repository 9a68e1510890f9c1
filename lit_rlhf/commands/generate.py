"""Let a finished run answer prompts.

A prompt that is a text becomes a user's message where the tokenizer has a chat template. In a file of prompts every
line is a JSON object whose "prompt" is a text or a list of messages. Answers appear as soon as their batch is done.
In a file of answers each line has prompt, response and length, in tokens; with --kl also how far the run has moved.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lit_rlhf.callbacks.prompts import Prompt
from lit_rlhf.commands import finished_run
from lit_rlhf.commands.asking import Asked, ask
from lit_rlhf.commands.quiet import quieten
from lit_rlhf.embedded import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.models.backbone import Backbone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    finished_run.add_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--image", type=Path, action="append", default=[], help="a picture that --prompt shows")
    parser.add_argument("--prompts", type=Path, help='JSON lines, each with a "prompt"')
    parser.add_argument("--out", type=Path, help="file of JSON lines to write, instead of showing the answers")
    parser.add_argument("--raw", action="store_true", help="take texts as they are, without the chat template")
    parser.add_argument("--reference", action="store_true", help="let the base answer, without what was learnt")
    parser.add_argument(
        "--kl", action="store_true", help="add log pi(answer) - log base(answer) to each line of --out, in nats"
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="most tokens of an answer (default 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1)")
    parser.add_argument("--top_p", type=float, default=1.0, help="probability mass to draw from (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts answered at once (default 8)")
    parser.add_argument("--quantization", default="none", choices=("none", "nf4", "int8"), help="of the base")


def run(args: argparse.Namespace) -> None:
    """Answer the prompts.

    Raises:
        ValueError: if there are no prompts, a line of the file is wrong, the output exists, or the run does not load.
    """
    if args.kl and args.out is None:
        raise ValueError("--kl needs --out: it is written beside the answers")
    if args.out is not None and args.out.exists():
        raise ValueError(f"--out={args.out} exists already; choose another file or remove it")
    quieten()
    config = finished_run.backbone_config(args.run, args.base, args.dtype, args.quantization)
    if (args.reference or args.kl) and config.adapter is None:
        raise ValueError(
            f"{args.run} holds a whole model, so there is no reference in it: generate from its base instead"
        )
    tokenizer = finished_run.load_tokenizer(args.run)
    file = Path(resolve(str(args.prompts))) if args.prompts else None
    prompts = ask(args.prompt, file, args.image, tokenizer, args.run, is_raw=args.raw)
    import torch

    from lit_rlhf.models.building import build_backbone

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build_backbone(config, reference="none", device=device).to(device)
    if args.out is None:
        answer(backbone, tokenizer, prompts, args, None)
        return
    with args.out.open("w", encoding="utf-8") as out:
        answer(backbone, tokenizer, prompts, args, out)
    print(f"{len(prompts)} answers: {args.out}")  # noqa: T201


def answer(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Asked],
    args: argparse.Namespace,
    out: TextIO | None,
) -> None:
    """Answer batch by batch, to a file of JSON lines or, where there is none, to the screen."""
    from lit_rlhf.models.tokenizers import stop_tokens

    stops = stop_tokens(tokenizer, backbone)
    for start in range(0, len(prompts), args.batch_size):
        asked = prompts[start : start + args.batch_size]
        with backbone.role("reference" if args.reference else "policy"):
            answers = backbone.generate(
                [prompt.tokens for prompt in asked],
                args.max_new_tokens,
                stop_tokens=stops,
                temperature=args.temperature,
                top_p=args.top_p,
                seed=args.seed + start,
                pictures=[prompt.pictures for prompt in asked],
            )
        moved = [{"kl": kl} for kl in divergences(backbone, asked, answers)] if args.kl else [{}] * len(asked)
        for prompt, ids, kl in zip(asked, answers, moved, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
            if out is None:
                print(text if len(prompts) == 1 else f"> {_last_words(prompt.shown)}\n{text}\n")  # noqa: T201
            else:
                row = {"prompt": prompt.shown, "response": text, "length": len(ids), **kl}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def divergences(backbone: Backbone, prompts: Sequence[Asked], answers: Sequence[Sequence[int]]) -> list[float]:
    """How much likelier each answer is to the policy than to its base: its mean over the policy's own is their KL.

    Args:
        backbone: with an adapter.
        prompts: with their tokens.
        answers: token ids of the answer to each.

    Returns:
        log pi(answer | prompt) - log base(answer | prompt), in nats.
    """
    import torch

    from lit_rlhf.types import Forest, Segment

    trees = [
        [
            Segment(prompt.tokens, [False] * len(prompt.tokens), pictures=prompt.pictures),
            Segment(answer, [True] * len(answer), 0),
        ]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    forest = Forest.pack(trees).to(backbone.base.device)
    with torch.no_grad():
        logprobs = backbone.token_logprobs(forest).logprobs.double()
        with backbone.role("reference"):
            logratios = logprobs - backbone.token_logprobs(forest).logprobs
    sums = logratios.new_zeros(forest.num_sequences).index_add(0, forest.sequences, logratios)
    return [round(moved, 5) for moved in sums.tolist()]


def _last_words(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
