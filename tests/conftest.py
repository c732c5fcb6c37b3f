"""What every test may ask for."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# What the command remembers of its runs goes into a folder of this test process, not into the user's home.
os.environ["TRIVIUM_HOME"] = tempfile.mkdtemp(prefix="trivium-tests-")
atexit.register(shutil.rmtree, os.environ["TRIVIUM_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which this machine does not have")
    return folder
