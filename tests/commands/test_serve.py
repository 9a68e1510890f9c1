"""The whole command in a process of its own, and what it refuses before it loads anything."""

from __future__ import annotations

import json
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from lit_rlhf.commands.serving.answers import handler


def test_runs_are_served_under_their_names(policy_folders, monkeypatch, tiny_llama):
    served = []
    monkeypatch.setattr(handler, "serve_answers", lambda voices, settings: served.append((voices, settings)))
    main(["serve", str(policy_folders("sft")), f"old={policy_folders('dpo')}", "--port", "0"])
    ((voices, settings),) = served
    assert list(voices.by_name) == ["sft", "old", "base"]
    assert (settings.host, settings.port, settings.max_items, settings.token) == ("127.0.0.1", 0, 16, None)
    assert settings.model == tiny_llama().name


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--host", "0.0.0.0"], "is open to other machines"), (["--port", "99999"], "--port 99999")],
)
def test_what_is_refused(words, message, policy_folders, capsys, monkeypatch):
    monkeypatch.delenv("LIT_RLHF_TOKEN", raising=False)
    with pytest.raises(SystemExit) as end:
        main(["serve", str(policy_folders("sft")), *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_of_its_own(policy_folders):
    words = ["serve", str(policy_folders("sft")), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "lit_rlhf", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("answering at http://127.0.0.1:")
        port = int(line.split("/v1")[0].rpartition(":")[2])
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"model": "sft", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        assert json.loads(connection.getresponse().read())["usage"]["completion_tokens"] <= 3
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "stopped after 1 requests"
    assert "Traceback" not in said
