"""The home: the one folder that holds everything a run leaves."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from intarsia_client.errors import InputError, StorageError

DEFAULT_HOME = Path(".intarsia")


@dataclass(frozen=True, kw_only=True)
class Home:
    """Where a run's database, store, MLflow and reports lie; nothing is written elsewhere.

    Args:
        path: The folder, absolute.
        database_url: SQLAlchemy URL of the registry's database.
        store_url: Local folder or fsspec URL of the content-addressed store.
    """

    path: Path
    database_url: str
    store_url: str

    @classmethod
    def open(cls, path: Path | None = None, *, create: bool = True) -> Home:
        """Find a home, and make sure that it can be written.

        The environment may place parts of it elsewhere: ``INTARSIA_DATABASE_URL`` and
        ``INTARSIA_STORE_URL`` stand for the database and the store.

        Args:
            path: The folder; None takes ``INTARSIA_HOME``, or ``.intarsia`` in the working folder.
            create: Whether to make it where it is missing.

        Returns:
            The home.

        Raises:
            InputError: If it is missing and ``create`` is false.
            StorageError: If it is a file, or cannot be made or written.
        """
        chosen = path or Path(os.environ.get("INTARSIA_HOME") or DEFAULT_HOME)
        folder = chosen.expanduser().absolute()
        _make_writable(folder, create=create)
        database = os.environ.get("INTARSIA_DATABASE_URL")
        return cls(
            path=folder,
            database_url=database or f"sqlite:///{quote(str(folder / 'intarsia.db'))}",
            store_url=os.environ.get("INTARSIA_STORE_URL") or str(folder / "store"),
        )

    @property
    def mlflow_database(self) -> Path:
        """MLflow's SQLite file."""
        return self.path / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """MLflow's artifact folder."""
        return self.path / "mlartifacts"

    @property
    def reports(self) -> Path:
        """Reports for people."""
        return self.path / "reports"

    @property
    def adapters(self) -> Path:
        """Exported PEFT folders."""
        return self.path / "adapters"

    @property
    def runs(self) -> Path:
        """What single runs keep beside the database."""
        return self.path / "runs"


def _make_writable(folder: Path, *, create: bool) -> None:
    """Make the folder and really write into it; permissions alone do not tell."""
    remedy = "choose a folder that you may write, with --home or INTARSIA_HOME"
    try:
        if not create and not folder.exists():
            raise InputError(
                "home", folder, "run a demo or a simulation first, or name it with --home"
            )
        if folder.is_file():
            raise StorageError("home", f"{folder} is a file", remedy)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe.") as probe:
            probe.write(b"intarsia")
    except OSError as error:
        raise StorageError("home", f"{folder} ({error.strerror})", remedy) from None
