"""How the tests of the benchmarks get at scripts, which are in no package."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load_script():
    """Load a script of ``benchmarks``, by its path there, with the files in sight that it sees when it is run."""

    def load(name):
        path = BENCHMARKS / name
        spec = importlib.util.spec_from_file_location("script_" + "_".join(Path(name).with_suffix("").parts), path)
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(path.parent), str(BENCHMARKS), *sys.path])
            spec.loader.exec_module(module)
        return module

    return load
