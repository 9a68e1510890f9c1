"""The whole command, away from a terminal and at one."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time

import pytest

from datamodules.forms import read_row
from lit_rlhf.cli import main
from lit_rlhf.commands.speaking import voices
from lit_rlhf.commands.speaking.voices import Voice

QUESTION = "What is the capital of France?"


@pytest.fixture
def chat(monkeypatch, capsys, tmp_path):
    """``chat([lines], *words)``: what stdout and stderr got; status is the exit status."""
    monkeypatch.chdir(tmp_path)

    def run(lines, *words):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        try:
            main(["chat", *map(str, words)])
        except SystemExit as end:
            run.status = end.code
        else:
            run.status = 0
        said = capsys.readouterr()
        return said.out.splitlines(), said.err

    return run


def test_a_script_talks_to_base_sft_and_dpo(chat, policy_folders, reward_folders, tmp_path, capsys):
    words = (policy_folders("sft"), policy_folders("dpo"), "--temperature", "0", "--max_new_tokens", "8")
    lines = [
        QUESTION,
        "/good",
        "/use dpo",
        "/retry",
        "/compare base dpo",
        "/retry",
        "/prefer 2",
        f"/save {tmp_path / 'a.jsonl'}",
    ]
    out, err = chat(lines, *words, "--reward", reward_folders())
    assert chat.status == 0, err
    greedy = []
    for folder, more in ((words[0], ()), (words[1], ()), (words[0], ("--reference",))):
        main(["generate", str(folder), "--prompt", QUESTION, "--temperature", "0", "--max_new_tokens", "8", *more])
        greedy.append(capsys.readouterr().out.strip())
    sft, dpo, base = greedy
    assert [line.strip() for line in out] == [sft, dpo, f"1 base> {base}".strip(), f"2 dpo> {dpo}".strip()]
    assert err.count("reward") == 3
    thumb, pair = map(json.loads, (tmp_path / "feedback.jsonl").read_text().splitlines())
    assert read_row(thumb)[0].responses[0].label is True
    assert read_row(pair)[0].responses[0].text[0]["content"].strip() == dpo
    assert json.loads((tmp_path / "a.jsonl").read_text())["messages"][1]["content"].strip() == dpo


def test_a_mistake_of_a_script_shows_in_its_status(chat, policy_folders):
    out, err = chat(["/hlp", "/system Be brief.", "/history"], policy_folders("sft"), "--system", "Be long.")
    assert chat.status == 1
    assert "did you mean help?" in err
    assert out == ["system> Be brief."]


def test_a_model_without_a_template_says_so(chat, policy_folders, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(policy_folders("sft"), folder)
    (folder / "chat_template.jinja").unlink()
    _, err = chat(["1 + 1 =", "/good"], folder, "--max_new_tokens", "3")
    assert "there is no chat template" in err
    assert json.loads((tmp_path / "feedback.jsonl").read_text())["prompt"] == "1 + 1 ="


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--top_p", "0"], "top_p is 0"), (["--reward", "nowhere/at/all"], "nowhere/at/all")],
)
def test_what_is_refused_before_the_talk(words, message, chat, policy_folders):
    _, err = chat([], policy_folders("sft"), *words)
    assert chat.status == 2
    assert message in err


def talk_without_end(folder):
    """In a child process: a talk with a model that never comes to an end, on the terminal of the process."""

    def answer(self, *args):
        self.stop_tokens, self.reader.max_tokens = [], 10**9
        return Voice.answer(self, *args)

    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(voices, "Voice", type("Voice", (Voice,), {"answer": answer}))
        main(["chat", str(folder), "--max_new_tokens", "100000"])
    sys.stdout.flush()


def test_a_person_at_a_terminal_stops_an_answer_and_leaves(policy_folders):
    pty = pytest.importorskip("pty")
    folder = policy_folders("sft")
    child, terminal = pty.fork()
    if child == 0:
        status = 1
        try:
            talk_without_end(folder)
            status = 0
        finally:
            os._exit(status)
    seen = ""

    def wait_for(text):
        nonlocal seen
        end = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen
            seen += os.read(terminal, 4096).decode(errors="replace")
        before, seen = seen.split(text, 1)
        return before

    try:
        assert "sft, base: sft speaks" in wait_for("you> ")
        os.write(terminal, b"Hello\n")
        wait_for("sft> ")
        os.write(terminal, b"\x03")
        wait_for("stopped")
        wait_for("you> ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
        child = 0
        assert status == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
