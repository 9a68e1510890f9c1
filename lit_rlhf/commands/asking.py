"""The prompts of the command line in tokens, with the pictures that they show, read as for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_rlhf.callbacks.prompts import Prompt, encode, read_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lit_rlhf.types import Picture


class Asked(NamedTuple):
    """One prompt.

    Args:
        shown: as it was given.
        tokens: its ids.
        pictures: those that its image tokens stand for.
    """

    shown: Prompt
    tokens: list[int]
    pictures: tuple[Picture, ...] = ()


def ask(
    prompts: Sequence[str],
    file: Path | None,
    images: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    *,
    is_raw: bool = False,
) -> list[Asked]:
    """Prompts of the command line and of a file.

    Args:
        prompts: texts; each shows all of ``images``.
        file: JSON lines, each with a "prompt"; those of a run that reads pictures may have "images".
        images: files.
        tokenizer: of the run.
        run: its folder, which holds a processor where its model reads pictures.
        is_raw: take texts as they are, without the chat template.

    Raises:
        ValueError: if there are no prompts, a line is wrong, or pictures are shown to a model that reads text alone.
    """
    from datamodules.pictures.processors import holds_processor

    given: list[Prompt] = [*prompts, *(read_prompts(file) if file else [])]
    if not given:
        raise ValueError("nothing to answer: give --prompt or --prompts")
    if not holds_processor(str(run)):
        if images:
            raise ValueError(f"--image: {run} holds no processor of pictures, so its model reads text alone")
        return [Asked(prompt, encode(prompt, tokenizer, is_raw)) for prompt in given]
    rows = [_row(prompt, images, tokenizer, is_raw) for prompt in prompts]
    read = [*(_read(rows, tokenizer, run) if rows else []), *(_read(str(file), tokenizer, run) if file else [])]
    return [Asked(prompt, *seen) for prompt, seen in zip(given, read, strict=True)]


def _row(text: str, images: Sequence[Path], tokenizer: PreTrainedTokenizerBase, is_raw: bool) -> dict[str, Any]:
    """One text as a row of data, the marks of its pictures before it where it has none."""
    marked = text if "<image>" in text else "<image>" * len(images) + text
    plain = is_raw or tokenizer.chat_template is None
    prompt = marked if plain else [{"role": "user", "content": marked}]
    return {"prompt": prompt, **({"images": [{"bytes": file.read_bytes()} for file in images]} if images else {})}


def _read(
    rows: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, run: Path
) -> list[tuple[list[int], tuple[Picture, ...]]]:
    from datamodules import PromptDataModule

    data = PromptDataModule(predict=rows, tokenizer=tokenizer, processor=str(run), max_prompt_length=2**20)
    batches = data.steps("predict")
    return [(list(prompt.tokens), prompt.pictures) for batch in batches for prompt in batch.prompts]
