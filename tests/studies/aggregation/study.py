"""What the study runs: its settings, its rows and its cells."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from intarsia_aggregators.catalog import CATALOG, find_method
from intarsia_client.files import bytes_digest, canonical_json

FORMAT = 2
"""Raised where a change to the driver makes finished cells worthless."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """How many clients there are and who takes part.

    Args:
        clients: How many there are.
        fraction: Share that takes part in a round.
        rounds: Rounds in all.
        ranks: Ranks given to the clients in turn.
    """

    clients: int
    fraction: float
    rounds: int
    ranks: tuple[int, ...]

    @property
    def title(self) -> str:
        """What the tables say."""
        share = f", {self.fraction:.0%}" if self.fraction < 1.0 else ""
        return f"N = {self.clients}{share}"

    @property
    def mean_rank(self) -> int:
        """The one rank with as many numbers to upload in all.

        Raises:
            ValueError: If there is none.
        """
        mean = Fraction(sum(self.ranks), len(self.ranks))
        if mean.denominator != 1 or self.clients % len(self.ranks):
            raise ValueError(f"ranks {self.ranks} of {self.clients} clients have no whole mean")
        return int(mean)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One of the two data sets and what of it is used.

    Args:
        name: ``"banking77"`` or ``"shakespeare"``.
        task: ``"sequence-classification"`` or ``"causal-lm"``.
        classes: How many classes (intents, speakers).
        train: Records of each class to train on.
        test: Held-out records of each class.
        validation: Records of each class that learning rates are chosen by; neither trained on nor
            in the figures.
        longest_text: Longer texts are left out, in characters.
        max_length: Longest sequence, in tokens.
        epochs: Passes of a client over its records in a round.
        batch_size: Sequences in an optimiser step.
        layers: The layers that are adapted; those below the first are frozen.
        target_modules: What in those layers is adapted, by the ends of the names.
        learning_rates: What the learning rate is chosen from.
        head_learning_rate: The classification head's rate under all methods; 0 where there is none.
    """

    name: str
    task: str
    classes: int
    train: int
    test: int
    validation: int
    longest_text: int
    max_length: int
    epochs: int
    batch_size: int
    layers: tuple[int, ...]
    target_modules: tuple[str, ...]
    learning_rates: tuple[float, ...]
    head_learning_rate: float = 0.0

    @property
    def measure(self) -> str:
        """What is compared."""
        return "accuracy" if self.task == "sequence-classification" else "perplexity"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the tables: a method of the catalogue with its options.

    Args:
        name: What the tables say.
        method: Its name in the catalogue; ``"central"`` and ``"local"`` for the ends of the scale.
        start: Where a client's round starts; empty for the method's own.
        broadcast_rank: Directions that clients are sent; 0 for the strategy's own choice.
        upload: Precision of the uploads.
        download: Precision of the broadcast.
        keep_optimizer: Whether clients keep AdamW's moments.
        mean_rank: Whether all clients have the mean rank, as those of methods for one rank.
        one_rate: Whether clients of all ranks have the same learning rate.
        everywhere: Whether a variant is run in all federations.
    """

    name: str
    method: str
    start: str = ""
    broadcast_rank: int = 0
    upload: str = "float32"
    download: str = "float32"
    keep_optimizer: bool = False
    mean_rank: bool = False
    one_rate: bool = False
    everywhere: bool = False

    @property
    def one_rank(self) -> bool:
        """Whether all clients have the same rank."""
        if self.method in ENDS:
            return False
        return self.mean_rank or not find_method(self.method).mixed_ranks

    @property
    def head_alone(self) -> bool:
        """Whether nothing but a head is trained, so that the learning rate decides nothing."""
        return self.method not in ENDS and find_method(self.method).trained_factors(1) == "none"

    @property
    def personal(self) -> bool:
        """Whether there is no global model, so that clients' own ones are measured."""
        return self.method == "local" or (
            self.method != "central" and find_method(self.method).shared_factors == "a"
        )


ENDS = ("central", "local")
CENTRAL, LOCAL = Row(name="central", method="central"), Row(name="local only", method="local")


Place = tuple[str, Row, Federation, str]
"""A data set's name, a row, a federation and a split."""

Rates = dict[Place, float]
"""The learning rates of the figures."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run, with all that decides its result.

    Args:
        dataset: The data.
        row: What is run.
        federation: Over whom.
        partition: How the records are split.
        seed: Seed of the split, the head, the starts, the sampling and the order of records.
        learning_rate: AdamW's peak learning rate.
        alpha_over_rank: LoRA's alpha as a multiple of the rank.
        learning_rate_rank: The rank that the learning rate is meant for; see
            :class:`intarsia_client.assignment.TrainingParameters`.
        measured: Measurements over the run.
        most_clients: Of how many clients an own adapter is measured.
        tuning: Whether it serves to choose a learning rate, measured on the validation records.
    """

    dataset: Dataset
    row: Row
    federation: Federation
    partition: str
    seed: int
    learning_rate: float
    alpha_over_rank: float
    learning_rate_rank: int
    measured: int
    most_clients: int
    tuning: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        """The clients' ranks in turn, as this row's method can take them."""
        return (self.federation.mean_rank,) if self.row.one_rank else self.federation.ranks

    @property
    def key(self) -> str:
        """Names the cell: a digest of everything that decides its result."""
        settings = asdict(self)
        # What the rate is chosen from and what the tables call the row do not.
        del (
            settings["dataset"]["learning_rates"],
            settings["row"]["name"],
            settings["row"]["everywhere"],
        )
        if not self.dataset.head_learning_rate:
            del settings["dataset"]["head_learning_rate"]
        settings["format"] = FORMAT
        return bytes_digest(canonical_json(settings)).removeprefix("sha256:")[:20]

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> Cell:
        """The cell that ``dataclasses.asdict`` made this of, perhaps by way of JSON."""
        return cls(
            **{
                **settings,
                "dataset": Dataset(**_with_tuples(settings["dataset"])),
                "row": Row(**settings["row"]),
                "federation": Federation(**_with_tuples(settings["federation"])),
            }
        )

    @property
    def cost_class(self) -> tuple[object, ...]:
        """Cells of one class take about as long."""
        method = self.row.method if self.row.method in ENDS or self.row.personal else ""
        return self.dataset.name, self.federation, method

    @property
    def title(self) -> str:
        """One line for the progress."""
        where = "pooled" if self.row == CENTRAL else f"{self.federation.title}, {self.partition}"
        return (
            f"{self.dataset.name}, {where}, seed {self.seed}, {self.row.name}, "
            f"rate {self.learning_rate:g}"
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole study, or its reduced form.

    Args:
        datasets: The data sets.
        federations: The federations.
        partitions: The splits.
        seeds: The seeds of the figures.
        rows: The catalogue's methods and the variants, in the order of the tables.
        tuning_seed: The seed on which learning rates are chosen.
        tuning_federation: The federation on which all of them are tried. In the others, and on
            the other splits, a row's best one there is tried again, with its neighbours.
        tuning_partition: The split on which all are.
        variant_clients: The federations that the variants are run in, by their clients.
        alpha_over_rank: As in :class:`Cell`.
        learning_rate_rank: As in :class:`Cell`.
        measured: As in :class:`Cell`.
        most_clients: As in :class:`Cell`.
        central_rank: Rank of the central adapter.
    """

    datasets: tuple[Dataset, ...]
    federations: tuple[Federation, ...]
    partitions: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    tuning_seed: int
    tuning_federation: Federation
    tuning_partition: str
    variant_clients: tuple[int, ...]
    alpha_over_rank: float
    learning_rate_rank: int
    measured: int
    most_clients: int
    central_rank: int

    def tuning_cells(self) -> list[Cell]:
        """The cells of all learning rates in one federation, those of one base model together."""
        return [
            self.cell(
                dataset,
                row,
                self.tuning_federation,
                self.tuning_partition,
                self.tuning_seed,
                rate,
                tuning=True,
            )
            for dataset in self.datasets
            for row in (CENTRAL, LOCAL, *self.rows)
            for rate in dataset.learning_rates[: 1 if row.head_alone else None]
        ]

    def cells(self, rates: Rates) -> list[Cell]:
        """The cells of the figures, those of one base model together.

        Args:
            rates: The learning rates; what it lacks is left out.

        Returns:
            The cells, each once, seed by seed: what is finished of a study is then of few seeds in
            all settings.
        """
        found = [
            self.cell(dataset, row, federation, partition, seed, rate)
            for seed in self.seeds
            for dataset in self.datasets
            for federation in self.federations
            for partition in self.partitions
            for row in (CENTRAL, LOCAL, *self.rows)
            if self.is_run(row, federation)
            and (rate := rates.get((dataset.name, row, federation, partition))) is not None
        ]
        return list({cell.key: cell for cell in found}.values())

    def is_run(self, row: Row, federation: Federation) -> bool:
        """Whether a row is run in a federation: variants are not run everywhere."""
        variant = row not in (CENTRAL, LOCAL) and row.name != row.method and not row.everywhere
        return not variant or (
            federation.clients in self.variant_clients and federation.fraction == 1.0
        )

    def cell(
        self,
        dataset: Dataset,
        row: Row,
        federation: Federation,
        partition: str,
        seed: int,
        rate: float,
        *,
        tuning: bool = False,
    ) -> Cell:
        """The cell of one figure; several figures may share the ends of the scale."""
        if row in (CENTRAL, LOCAL):
            # Nobody is sampled there; central training does not even see who has what.
            rounds = self.tuning_federation.rounds
            federation = replace(federation, fraction=1.0, rounds=rounds)
        if row == CENTRAL:
            federation = replace(federation, clients=1, ranks=(self.central_rank,))
            partition = "iid"
        return Cell(
            dataset=dataset,
            row=row,
            federation=federation,
            partition=partition,
            seed=seed,
            learning_rate=rate,
            alpha_over_rank=self.alpha_over_rank,
            learning_rate_rank=0 if row.one_rate else self.learning_rate_rank,
            measured=self.measured,
            most_clients=self.most_clients,
            tuning=tuning,
        )


def read_study(path: Path, *, reduced: bool) -> Study:
    """Read the study's configuration.

    Args:
        path: The TOML file.
        reduced: Whether to read its reduced form.

    Returns:
        The study.
    """
    told = tomllib.loads(path.read_text())
    federations = tuple(Federation(**_with_tuples(one)) for one in told["federations"])
    tuning = told["tuning"]
    seeds, partitions = told["seeds"], told["partitions"]
    tuned_on = next(
        one for one in federations if (one.clients, one.fraction) == (tuning["clients"], 1.0)
    )
    if reduced:
        seeds, partitions = told["reduced"]["seeds"], told["reduced"]["partitions"]
        federations = tuple(one for one in federations if one.clients in told["reduced"]["clients"])
    variants = [] if reduced else [Row(**one) for one in told["variants"]]
    methods = [Row(name=entry.name, method=entry.name) for entry in CATALOG]
    return Study(
        datasets=tuple(
            Dataset(name=name, **_with_tuples(one)) for name, one in told["datasets"].items()
        ),
        federations=federations,
        partitions=tuple(partitions),
        seeds=tuple(seeds),
        rows=(*methods, *variants),
        tuning_seed=tuning["seed"],
        tuning_federation=tuned_on,
        tuning_partition=tuning["partition"],
        variant_clients=tuple(told["variant_clients"]),
        alpha_over_rank=told["alpha_over_rank"],
        learning_rate_rank=told["learning_rate_rank"],
        measured=told["measured"],
        most_clients=told["most_clients"],
        central_rank=told["central_rank"],
    )


def _with_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(one) if isinstance(one, list) else one for key, one in table.items()}


def evenly(rounds: int, count: int) -> Sequence[int]:
    """The rounds after which a run is measured: ``count`` of them, evenly, with the last."""
    return sorted({round(rounds * turn / count) for turn in range(1, count + 1)} - {0})
