"""The home's registry, open as long as a command looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from intarsia_platform.home import Home
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.database import Database


@dataclass(frozen=True, kw_only=True)
class OpenRegistry:
    """A home's database and its adapters.

    Args:
        database: The database.
        adapters: The adapters in it.
    """

    database: Database
    adapters: AdapterRegistry


@contextlib.contextmanager
def open_registry(home: Home) -> Iterator[OpenRegistry]:
    """Open a home's registry.

    Args:
        home: The home.

    Yields:
        The registry; closed when the block ends.

    Raises:
        StorageError: If the database cannot be opened.
    """
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.store import ContentStore

    with open_database(home.database_url) as database:
        adapters = AdapterRegistry(database, ContentStore(home.store_url))
        yield OpenRegistry(database=database, adapters=adapters)
