"""The home folder: where it is, what lies in it, and what is said when it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from intarsia_client.errors import InputError, StorageError
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTARSIA_HOME", "INTARSIA_DATABASE_URL", "INTARSIA_STORE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_everything_lies_below_the_folder(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    assert home.path == tmp_path / "home"
    assert home.database_url == f"sqlite:///{tmp_path}/home/intarsia.db"
    assert home.store_url == str(tmp_path / "home" / "store")
    places = (home.mlflow_database, home.mlflow_artifacts, home.reports, home.adapters, home.runs)
    assert [place.relative_to(home.path).as_posix() for place in places] == [
        "mlflow.db",
        "mlartifacts",
        "reports",
        "adapters",
        "runs",
    ]


def test_opening_leaves_nothing_but_the_folder(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "deep" / "home")
    assert list(home.path.iterdir()) == []


def test_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "by-environment"))
    monkeypatch.setenv("INTARSIA_DATABASE_URL", "postgresql://host/name")
    monkeypatch.setenv("INTARSIA_STORE_URL", "memory://store")
    home = Home.open()
    assert home.path == tmp_path / "by-environment"
    assert (home.database_url, home.store_url) == ("postgresql://host/name", "memory://store")
    assert Home.open(tmp_path / "named").path == tmp_path / "named"


def test_without_a_name_it_is_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.open(None).path == tmp_path / ".intarsia"


def test_odd_characters_in_its_path_reach_the_database(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "a b?c#d%41é")
    open_database(home.database_url).close()
    ContentStore(home.store_url).put(b"here")
    assert {path.name for path in home.path.iterdir()} == {"intarsia.db", "store"}


def test_missing_and_not_to_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"home: .*missing; .*--home"):
        Home.open(tmp_path / "missing", create=False)
    assert not (tmp_path / "missing").exists()
    Home.open(tmp_path / "missing")
    Home.open(tmp_path / "missing", create=False)


@pytest.mark.parametrize("create", [True, False])
def test_a_file_is_no_home(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="file is a file") as caught:
        Home.open(tmp_path / "file", create=create)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_below_a_file_there_is_no_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="Not a directory"):
        Home.open(tmp_path / "file" / "home")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which nobody can write")
@pytest.mark.parametrize("place", ["/proc/self/task", "/proc/intarsia"])
def test_a_folder_that_cannot_be_written_is_no_home(place: str) -> None:
    with pytest.raises(StorageError, match=rf"home: {place} .*--home") as caught:
        Home.open(Path(place))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_looked_into_is_no_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # Root may look into every folder, so the refusal comes from the file layer.
    monkeypatch.setattr(Path, "exists", denied)
    monkeypatch.setattr(Path, "is_file", denied)
    for create in (True, False):
        with pytest.raises(StorageError, match="Permission denied"):
            Home.open(tmp_path / "home", create=create)
