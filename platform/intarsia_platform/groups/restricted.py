"""A federation restricted to the clients that hold a group's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from intarsia_client.base_model import base_digest
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.records import Record, read_records, records_digest
from intarsia_client.shards import ShardReference, write_shards

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.configuration_tables import DataConfiguration, TrackingConfiguration

_TRAIN, _TEST = "train.jsonl", "test.jsonl"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class RestrictedFederation:
    """What a group's federation is made of, before anything is trained.

    Args:
        configuration: The federation's, of these clients alone; its data's paths mean nothing
            until :meth:`placed`.
        train: From each client's name, in order, to its records.
        test: The server's held-out records of these clients; may be none.
        base_digest: Digest of the base model.
    """

    configuration: SimulationConfiguration
    train: Mapping[str, Sequence[Record]]
    test: Sequence[Record]
    base_digest: str

    @property
    def shards(self) -> dict[str, str]:
        """From each client's name to its records' digest."""
        return {name: records_digest(records) for name, records in self.train.items()}

    def key(self, **beside: object) -> str:
        """Digest of all that decides the result.

        Args:
            beside: What else decides it, as JSON values.

        Returns:
            ``"sha256:…"``; equal work has an equal one.
        """
        value = {
            "configuration": self.configuration.as_mapping(),
            "base": self.base_digest,
            "shards": self.shards,
            "test": records_digest(self.test),
            **beside,
        }
        return bytes_digest(canonical_json(value))

    def placed(self, folder: Path) -> tuple[SimulationConfiguration, Mapping[str, ShardReference]]:
        """Write the records down for the clients of a simulation.

        Args:
            folder: Where.

        Returns:
            The configuration that reads them, and where each client's lie.

        Raises:
            StorageError: If the folder cannot be written.
        """
        references = write_shards(folder / _TRAIN, self.train)
        paths = {"data.train": str(folder / _TRAIN)}
        if self.test:
            write_shards(folder / _TEST, {"": self.test})
            paths["data.test"] = str(folder / _TEST)
        configuration = self.configuration
        # Named in the configuration's digest as they are called here, wherever the home lies.
        typed = {key: Path(path).name for key, path in paths.items()}
        data = replace(configuration.data, train=paths["data.train"], test=paths.get("data.test"))
        placed = replace(configuration, data=data, typed={**configuration.typed, **typed})
        return placed, references


def restrict(
    configuration: SimulationConfiguration, clients: Sequence[str], *, grid: str
) -> RestrictedFederation:
    """Restrict a federation to some of its clients, by the client field of its records.

    Args:
        configuration: The federation's configuration.
        clients: Names of the clients that hold the group's data.
        grid: Where clients run, whatever the configuration says.

    Returns:
        The federation.

    Raises:
        InputError: If a client has no records, or the configuration does not go with a group.
    """
    names = sorted(set(clients))
    if not names:
        raise InputError("--clients", "none", "name the clients that hold the group's data")
    _check(configuration, len(names))
    train = _of_clients(configuration, configuration.data.train, "data.train")
    missing = [name for name in names if name not in train]
    if missing:
        known = ", ".join(sorted(train)[:_SHOWN]) + (", …" if len(train) > _SHOWN else "")
        raise InputError("--clients", missing[0], f"data.train has records of {known}")
    held_out = {}
    if configuration.data.test is not None:
        held_out = _of_clients(configuration, configuration.data.test, "data.test")
    test = [record for name in names for record in held_out.get(name, ())]
    typed = {key: one for key, one in configuration.typed.items() if not key.startswith("data.")}
    return RestrictedFederation(
        configuration=replace(
            configuration,
            data=DataConfiguration(train=_TRAIN, test=_TEST if test else None),
            federation=replace(configuration.federation, clients=len(names)),
            engine=replace(configuration.engine, grid=grid),
            evaluation=replace(configuration.evaluation, clients=False, own_adapters=False),
            tracking=TrackingConfiguration(mlflow=False),
            typed=typed,
        ),
        train={name: train[name] for name in names},
        test=test,
        base_digest=base_digest(configuration.model.base),
    )


def _check(configuration: SimulationConfiguration, clients: int) -> None:
    data, privacy = configuration.data, configuration.privacy
    if data.partition != "natural":
        raise InputError(
            "data.partition", data.partition, 'set "natural"; data.client says whose a record is'
        )
    if privacy.unit != "none":
        raise InputError(
            "privacy.unit",
            privacy.unit,
            "no budget covers a group's descriptor; run `intarsia simulate`, then "
            "`intarsia groups admit` its adapter",
        )
    needed = configuration.federation.minimum_accepted
    if needed > clients:
        raise InputError(
            "federation.minimum_accepted", needed, f"set it to at most the {clients} clients named"
        )


def _of_clients(
    configuration: SimulationConfiguration, path: str, thing: str
) -> dict[str, list[Record]]:
    data = configuration.data
    records = read_records(
        Path(path),
        text=data.text,
        label=data.label,
        client=data.client,
        require_label=configuration.model.task == "sequence-classification",
        require_client=thing == "data.train",
        thing=thing,
    )
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.client is not None:
            found.setdefault(record.client, []).append(record)
    return found
