"""What tests of the Flower app share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

APP = Path(__file__).resolve().parents[2] / "deploy" / "flower_app"


@pytest.fixture(scope="module")
def server_app() -> Iterator[ModuleType]:
    specification = importlib.util.spec_from_file_location("server_app", APP / "server_app.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["server_app"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["server_app"]
