"""The benchmark of samplers runs, on little, and prints a line per side."""

import json
import random


def test_it_prints_a_line_per_side(load_script, tmp_path, monkeypatch, capsys):
    words = random.Random(0).choices(["the", "fox", "ran", "over", "hills", "and", "saw", "rain"], k=130)
    row = f"\n\nHuman: {' '.join(words)}\n\nAssistant:"
    data = tmp_path / "hh.jsonl"
    data.write_text("".join(json.dumps({"chosen": f"{row} yes {n}", "rejected": f"{row} no"}) + "\n" for n in range(3)))
    script = load_script("sampling.py")
    monkeypatch.setattr(script, "REPEATS", 1)
    monkeypatch.setattr(script, "MAX_NEW_TOKENS", 3)
    monkeypatch.setattr("sys.argv", ["", "--data", str(data), "--arch", "tiny", "--num-prompts", "2"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["generate, PEFT", "generate, fused", "cached sampler"]
    assert all("ms of processor time" in line for line in lines)
