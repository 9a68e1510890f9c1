"""Reference log-probabilities, computed once per example and kept on disk.

Filled lazily, whenever an example is first met, so it needs no pass of its own and serves streams, shuffles and
restarts. An entry is found by the address of its row and believed only if a digest of its tokens still fits; the folder
carries a digest of the reference's weights. A changed row or model is refused by name, never used and never silently
recomputed. Entries are float32 per scored token, in safetensors files that are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_rlhf.types import Forest

FLUSH_EVERY = 4096
"""Entries that may be lost by a kill."""


class _Entry(NamedTuple):
    digest: str
    logprobs: Tensor


class ReferenceCache:
    """Token log-probabilities of the reference, by row and response.

    Args:
        folder: where the entries live; made if need be, read if it holds some.
        fingerprint: digest of the reference's weights.
        rank: of this process: each one writes files of its own.

    Raises:
        ValueError: if the folder was filled by another reference, or a file in it is damaged.
    """

    def __init__(self, folder: str | Path, fingerprint: str, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.fingerprint = fingerprint
        self.rank = rank
        self.hits = 0
        self.misses = 0
        self._entries: dict[str, _Entry] = {}
        self._fresh: list[str] = []
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.folder.glob("part-*.safetensors")):
            self._read(file)

    def lookup(self, forest: Forest, keys: Sequence[str]) -> Tensor | None:
        """Log-probabilities (N,) of a forest's scored tokens, float32; None if any response is not known.

        Args:
            forest: the packed text.
            keys: of its sequences, in their order, such as ``train.jsonl:17#0``.

        Raises:
            ValueError: if a row's tokens or pictures are not those that the entry was computed for.
        """
        digests = _digests(forest)
        found = [self._entries.get(key) for key in keys]
        for key, digest, entry in zip(keys, digests, found, strict=True):
            if entry is not None and entry.digest != digest:
                raise ValueError(
                    f"{key.partition('#')[0]}: its tokens are not those that its reference log-probabilities in "
                    f"{self.folder} were computed for: the data, a picture, the tokenizer or a length limit changed. "
                    "Delete the folder or name another one in model.reference.cache_folder"
                )
        known = [entry.logprobs for entry in found if entry is not None]
        if len(known) < len(keys):
            self.misses += len(keys) - len(known)
            return None
        self.hits += len(keys)
        return torch.cat(known).to(forest.tokens.device)

    def store(self, forest: Forest, keys: Sequence[str], logprobs: Tensor) -> None:
        """Remember the log-probabilities (N,) of a forest's scored tokens.

        Args:
            forest: the packed text.
            keys: of its sequences, in their order.
            logprobs: (N,) under the reference.
        """
        counts = torch.bincount(forest.sequences.cpu(), minlength=len(keys)).tolist()
        parts = logprobs.detach().float().cpu().split(counts)
        for key, digest, part in zip(keys, _digests(forest), parts, strict=True):
            if key not in self._entries:
                self._entries[key] = _Entry(digest, part.clone())
                self._fresh.append(key)
        if len(self._fresh) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the entries that are not on disk yet, as one file, whole or not at all."""
        if not self._fresh:
            return
        names = (f"part-{self.rank:05d}-{number:06d}.safetensors" for number in count())
        file = next(self.folder / name for name in names if not (self.folder / name).exists())
        entries = [self._entries[key] for key in self._fresh]
        index = [[key, entry.digest, len(entry.logprobs)] for key, entry in zip(self._fresh, entries, strict=True)]
        metadata = {"fingerprint": self.fingerprint, "index": json.dumps(index)}
        scratch = file.with_suffix(".tmp")
        save_file({"logprobs": torch.cat([entry.logprobs for entry in entries])}, scratch, metadata)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.replace(file)
        self._fresh.clear()

    def _read(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as stored:
                metadata = stored.metadata() or {}
                logprobs = stored.get_tensor("logprobs")
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); delete it, and its entries are computed again") from error
        if metadata.get("fingerprint") != self.fingerprint:
            raise ValueError(
                f"{self.folder} holds log-probabilities of another reference model; delete it or name another folder "
                "in model.reference.cache_folder"
            )
        index = json.loads(metadata["index"])
        for (key, digest, _), part in zip(index, logprobs.split([length for *_, length in index]), strict=True):
            self._entries[key] = _Entry(digest, part)


def _digests(forest: Forest) -> list[str]:
    """One digest per sequence, of its tokens, of which of them are scored and of its pictures."""
    tokens, scored = forest.tokens.tolist(), set(forest.targets.tolist())
    starts = forest.starts
    digests = []
    for leaf in forest.leaves:
        spans = [range(starts[part], starts[part] + forest.lengths[part]) for part in forest.path(leaf)]
        text = ",".join(f"{tokens[index]}{'+' if index in scored else ''}" for span in spans for index in span)
        text = ";".join([text, *(picture.digest for picture in forest.seen_in(leaf))])
        digests.append(hashlib.blake2b(text.encode(), digest_size=16).hexdigest())
    return digests
