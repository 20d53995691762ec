"""The registry's tests run on every kind of database."""

from __future__ import annotations

import pytest
from intarsia_platform.registry.database import Database


@pytest.fixture
def database(any_database: Database) -> Database:
    """An empty database at the newest schema."""
    return any_database
