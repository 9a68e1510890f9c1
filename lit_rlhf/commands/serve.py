"""Let other programs talk to what was trained, through an API that is OpenAI's in form.

  lit-rlhf serve runs/sft runs/dpo
  curl http://127.0.0.1:8191/v1/chat/completions -d '{"model": "dpo", "messages": [{"role": "user", "content": "Hi"}]}'

Every run is a model under the name of its folder, and base is the one that they all began from; they share one
backbone. Only this machine can ask, unless --host says otherwise, which needs a token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_rlhf.commands.quiet import quieten
from lit_rlhf.commands.serving import server
from lit_rlhf.commands.speaking import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    arguments.add_voices(parser)
    server.add_arguments(parser, port=8191, items="answers", max_items=16)


def run(args: argparse.Namespace) -> None:
    """Serve until the process is asked to end.

    Raises:
        ValueError: if a run does not load, others than this machine could ask and no token is set, or nothing can
            listen at the address.
    """
    settings = server.read_settings(args, "lit_rlhf")
    quieten()
    from lit_rlhf.commands.serving.answers.handler import serve_answers
    from lit_rlhf.commands.speaking.voices import open_voices

    voices = open_voices(args)
    serve_answers(voices, settings._replace(model=Path(str(voices.backbone.base.name_or_path)).name))
