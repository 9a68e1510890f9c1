import gzip
import json
from pathlib import Path

from lit_rlhf.embedded import ASSETS
from lit_rlhf.embedded.make import main
from lit_rlhf.embedded.rows import best_accuracy


def contents(folder: Path) -> dict[str, bytes]:
    """Every data set, unpacked: what packs it differs between machines."""
    files = [path for path in folder.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz"))]
    return {
        path.name: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files
    }


def test_shipped_data_are_what_the_generator_makes(tmp_path: Path):
    main(["--only", "data", "--folder", str(tmp_path)])
    made = contents(tmp_path)
    assert len(made) == len(list(tmp_path.iterdir())) == 12
    assert made == contents(ASSETS)


def test_documented_ceilings_are_those_of_the_files():
    page = (Path(__file__).parents[2] / "docs" / "embedded_default.md").read_text(encoding="utf-8")
    for name, lines in contents(ASSETS).items():
        data, _, split = name.partition(".")[0].partition("_")
        if data in ("dpo", "reward"):
            ceiling = best_accuracy([json.loads(line) for line in lines.splitlines()])
            assert f"| {data} | {split} | {ceiling:.4f} |" in page


def test_what_is_embedded_stays_small():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 4_500_000
