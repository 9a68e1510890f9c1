"""The benchmark of kernels runs, on little, and writes a line per thing and phase."""

import json


def test_it_writes_a_line_per_thing_and_phase(load_script, tmp_path, monkeypatch, capsys):
    script = load_script("cpu_kernels.py")
    little = {
        "WEIGHTS": ((64, 32),),
        "FEW_ROWS": (4,),
        "RUN_LENGTHS": (8,),
        "TOKENS": 16,
        "ALL_WEIGHTS": 4096,
        "ROUNDS": 2,
    }
    for name, value in little.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr("sys.argv", ["", "--out", str(tmp_path)])
    script.main()
    told = capsys.readouterr().out
    rows = json.loads((tmp_path / "cpu_kernels.json").read_text())["rows"]
    names = ["product of a portion", "product of few rows", "attention forwards", "attention backwards"]
    assert [row["what"] for row in rows] == names
    assert all(row["torch_ms"] > 0 and row["ours_ms"] > 0 for row in rows)
    assert told.strip() in (tmp_path / "cpu_kernels.md").read_text()
