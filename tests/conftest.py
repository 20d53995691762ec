"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine must not fail a property; and a submission is checked on the same examples twice.
settings.register_profile("intarsia", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("intarsia")

# Tests run in as many processes as there are cores: threads of theirs would only wait for each
# other, spinning. What sets its own number of threads is not touched. PyTorch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here is read from a hub, and a name that is not there shall not be looked for.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Test files anywhere below share what lies beside this one.
sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: two processes share the files, and neither ends up alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
