import json
from pathlib import Path

from lit_rlhf.embedded import ASSETS
from lit_rlhf.embedded.make import main
from lit_rlhf.embedded.rows import best_accuracy


def test_shipped_data_are_what_the_generator_makes(tmp_path: Path):
    main(["--only", "data", "--folder", str(tmp_path)])
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_bytes() for path in ASSETS.glob("*.jsonl")}
    assert len(made) == 9
    assert made == shipped


def test_documented_ceilings_are_those_of_the_files():
    ceilings = {}
    for split in ("train", "validation", "test"):
        lines = (ASSETS / f"dpo_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ceilings[split] = round(best_accuracy([json.loads(line) for line in lines]), 4)
    page = (Path(__file__).parents[2] / "docs" / "embedded_default.md").read_text(encoding="utf-8")
    for split, ceiling in ceilings.items():
        assert f"| {split} | {ceiling:.4f} |" in page


def test_what_is_embedded_stays_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 3_500_000
