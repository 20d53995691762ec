"""How one file of records becomes the clients of a simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.records import Record

MAX_ALPHA = 1e6
_REMEDY = 'choose "natural", "iid" or "dirichlet:ALPHA", as in "dirichlet:0.5"'


@dataclass(frozen=True, kw_only=True)
class PartitionRule:
    """A way to split records over clients.

    Args:
        name: ``"natural"`` (by the client field), ``"iid"`` or ``"dirichlet"``.
        alpha: Concentration of the Dirichlet distribution, above 0; small values give each class
            to few clients. None for the other rules.
    """

    name: str
    alpha: float | None = None


def parse_rule(rule: str) -> PartitionRule:
    """Read a rule as the configuration writes it.

    Args:
        rule: ``"natural"``, ``"iid"`` or ``"dirichlet:ALPHA"``.

    Returns:
        The rule.

    Raises:
        InputError: If it is none of these, or alpha is not above 0 and at most
            :data:`MAX_ALPHA`.
    """
    name, _, parameter = rule.partition(":")
    if rule in ("natural", "iid"):
        return PartitionRule(name=rule)
    if name != "dirichlet":
        raise InputError("data.partition", rule, _REMEDY)
    try:
        alpha = float(parameter)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha <= MAX_ALPHA:
        raise InputError("data.partition", rule, f"{_REMEDY}; alpha above 0, at most {MAX_ALPHA:g}")
    return PartitionRule(name=name, alpha=alpha)


def partition_records(
    records: Sequence[Record], *, rule: str, clients: int, seed: int
) -> dict[str, list[Record]]:
    """Split training records over clients; the same arguments give the same split.

    ``natural`` takes the ``clients`` largest groups of the client field (by name where they are as
    large). ``iid`` deals shuffled records in equal parts. ``dirichlet`` draws, class by class, the
    clients' shares from a symmetric Dirichlet distribution, and gives each client that came out
    empty one record of the largest.

    Args:
        records: The records.
        rule: See :func:`parse_rule`.
        clients: How many clients there shall be, at least 1.
        seed: Seed of the draw, at least 0.

    Returns:
        From each client's name, in their order, to its records in the order of the file; every
        client has one at least. Only ``natural`` may leave records out: those of smaller groups.

    Raises:
        InputError: If there are fewer groups or records than clients, or records lack the field
            that the rule goes by.

    Reference:
        Yurochkin et al. 2019, arXiv:1905.12022 (shares of each class drawn from a Dirichlet
        distribution over clients); Hsu et al. 2019, arXiv:1909.06335 (Dirichlet splits for
        federated learning, drawn over classes per client).
    """
    parsed = parse_rule(rule)
    if parsed.name == "natural":
        return _natural(records, clients)
    if len(records) < clients:
        raise InputError("federation.clients", clients, f"the data has {len(records)} records")
    generator = _generator(seed, 0)
    if parsed.alpha is not None:
        parts = _dirichlet(records, parsed.alpha, clients, generator)
    else:
        dealt = np.array_split(generator.permutation(len(records)), clients)
        parts = [part.tolist() for part in dealt]
    width = max(3, len(str(clients - 1)))
    return {
        f"client-{position:0{width}}": [records[index] for index in sorted(part)]
        for position, part in enumerate(parts)
    }


def partition_test(
    records: Sequence[Record], *, train: Mapping[str, Sequence[Record]], rule: str, seed: int
) -> dict[str, list[Record]]:
    """Give each client the held-out records that mirror its training records.

    ``natural`` goes by the client field; ``iid`` deals in equal parts; ``dirichlet`` splits each
    class in the proportions in which its training records were split.

    Args:
        records: The held-out records.
        train: What :func:`partition_records` returned.
        rule: The same rule.
        seed: The same seed.

    Returns:
        From clients' names to their records; a client without any is absent.

    Raises:
        InputError: If the rule is ``dirichlet`` and a record has no label, or one that the
            training records lack.
    """
    parsed = parse_rule(rule)
    parts: dict[str, list[int]] = {client: [] for client in train}
    if parsed.name == "natural":
        for index, record in enumerate(records):
            if record.client in parts:
                parts[record.client].append(index)
    elif parsed.name == "iid":
        order = _generator(seed, 1).permutation(len(records))
        for client, part in zip(train, np.array_split(order, len(train)), strict=True):
            parts[client].extend(part.tolist())
    else:
        _mirror_classes(records, train, parts, _generator(seed, 1))
    return {
        client: [records[index] for index in sorted(part)] for client, part in parts.items() if part
    }


def _generator(seed: int, stream: int) -> np.random.Generator:
    """One of the independent streams of a seed."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def _natural(records: Sequence[Record], clients: int) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.client is not None:
            groups.setdefault(record.client, []).append(record)
    without = sum(record.client is None for record in records)
    if without:
        raise InputError(
            "data.client",
            f"{without} of {len(records)} records name no client",
            'name the field that does, or set data.partition to "iid"',
        )
    if len(groups) < clients:
        raise InputError(
            "federation.clients",
            clients,
            f"the data has {len(groups)} clients; set at most that many",
        )
    largest = sorted(groups, key=lambda name: (-len(groups[name]), name))[:clients]
    return {name: groups[name] for name in sorted(largest)}


def _classes(records: Sequence[Record], thing: str) -> dict[str, list[int]]:
    """Indices of each class's records, classes in the order of their names."""
    classes: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        if record.label is None:
            raise InputError(
                thing,
                f"record {index + 1} has no label",
                'name the field in data.label, or set data.partition to "iid"',
            )
        classes.setdefault(record.label, []).append(index)
    return dict(sorted(classes.items()))


def _dirichlet(
    records: Sequence[Record], alpha: float, clients: int, generator: np.random.Generator
) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(clients)]
    for indices in _classes(records, "data.train").values():
        shares = generator.dirichlet(np.full(clients, alpha))
        ends = np.rint(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        for part, taken in zip(parts, np.split(generator.permutation(indices), ends), strict=True):
            part.extend(taken.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return parts


def _mirror_classes(
    records: Sequence[Record],
    train: Mapping[str, Sequence[Record]],
    parts: dict[str, list[int]],
    generator: np.random.Generator,
) -> None:
    """Split each class by largest remainders in the proportions of the training records."""
    counts: dict[str, list[int]] = {}
    for position, held in enumerate(train.values()):
        for record in held:
            counts.setdefault(record.label or "", [0] * len(train))[position] += 1
    for label, indices in _classes(records, "data.test").items():
        if label not in counts:
            raise InputError(
                "data.test", f"label {label!r}", "leave it out; the training data lacks it"
            )
        quotas = np.array(counts[label]) * len(indices) / sum(counts[label])
        sizes = np.floor(quotas).astype(int)
        remainders = np.argsort(sizes - quotas, kind="stable")
        sizes[remainders[: len(indices) - sizes.sum()]] += 1
        ends = np.cumsum(sizes)[:-1]
        for part, taken in zip(
            parts.values(), np.split(generator.permutation(indices), ends), strict=True
        ):
            part.extend(taken.tolist())
