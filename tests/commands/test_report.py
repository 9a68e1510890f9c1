"""``report``: one run again, or several on one page."""

from __future__ import annotations

import json
import shutil

import pytest

from lit_rlhf.cli import main


def test_one_run_again(finished_run, tmp_path, capsys):
    folder = shutil.copytree(finished_run, tmp_path / "run")
    whole = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    main(["report", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    again = (folder / "report.html").read_text()
    for said in (
        "<h2>Samples</h2>",
        "<h2>Rewards before and after</h2>",
        "Finished after step 12",
        "lit_rlhf.DPOModule",
    ):
        assert said in whole
        assert said in again


def test_several_on_one_page(finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(finished_run, tmp_path / "run")
    other = shutil.copytree(finished_run, tmp_path / "other")
    main(["report", str(folder), str(other)])
    assert capsys.readouterr().out.strip() == "comparison.html"
    assert "<h1>run, other</h1>" in (tmp_path / "comparison.html").read_text()


def test_with_tables_from_elsewhere(finished_run, tmp_path):
    (tmp_path / "tables.json").write_text(json.dumps({"title": "True score", "rows": [{"run": "base", "score": 1}]}))
    main(["report", str(finished_run), "--tables", str(tmp_path / "tables.json"), "--out", str(tmp_path / "a.html")])
    assert "<h2>True score</h2>" in (tmp_path / "a.html").read_text()


def test_where_no_run_has_been(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path)])
    assert "no run has been there" in capsys.readouterr().err
