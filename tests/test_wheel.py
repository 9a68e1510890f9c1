"""An installed wheel brings both packages, the data they carry and the console script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lit_rlhf", "datamodules")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        cwd=environment.get("PYTHONPATH"),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of this tree installed; built from a copy, since a build writes beside its sources."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (wheel,) = (source / "dist").glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    return site


def test_every_file_of_both_packages_is_there(site: Path):
    for package in PACKAGES:
        files = {
            path.relative_to(ROOT)
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert {file for file in files if not (site / file).is_file()} == set()


def test_both_packages_import_from_it(site: Path):
    code = "import lit_rlhf, datamodules; print(lit_rlhf.__file__, datamodules.__file__)"
    assert run("-c", code, PYTHONPATH=str(site)).split() == [str(site / name / "__init__.py") for name in PACKAGES]


def test_it_declares_the_console_script(site: Path):
    (entry_points,) = site.glob("lit_rlhf-*.dist-info/entry_points.txt")
    assert "lit-rlhf = lit_rlhf.cli:main" in entry_points.read_text()
