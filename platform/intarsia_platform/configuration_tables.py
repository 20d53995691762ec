"""The tables of a simulation's configuration, each with its defaults.

``[train]`` and ``[privacy]`` are what travels to the clients: see
:class:`intarsia_client.assignment.TrainingParameters` and
:class:`intarsia_client.assignment.PrivacyParameters`. ``[resources]`` is what the clients have: see
:class:`intarsia_platform.planning.resources.ResourcesConfiguration`.
"""

from __future__ import annotations

from dataclasses import dataclass

GRIDS = ("ray", "inprocess")
AUTO = "auto"
"""What ``lora.ranks`` says where ranks are planned."""
ROBUST_RULES = ("none", "norm-bound", "multi-krum", "geometric-median", "fltrust")


@dataclass(frozen=True, kw_only=True)
class ModelConfiguration:
    """The frozen model and what it is for.

    Args:
        base: A transformers folder's absolute path, or a hub identifier.
        task: One of :data:`intarsia_client.wire.TASKS`.
    """

    base: str
    task: str


@dataclass(frozen=True, kw_only=True)
class DataConfiguration:
    """The records and how they become clients.

    Args:
        train: The training records' file or folder.
        test: The held-out records' file or folder, or None.
        text: Name of the field with the text.
        label: Name of the field with the class.
        client: Name of the field with the client.
        partition: See :func:`intarsia_platform.partition.parse_rule`.
    """

    train: str
    test: str | None = None
    text: str = "text"
    label: str = "label"
    client: str = "client"
    partition: str = "natural"


@dataclass(frozen=True, kw_only=True)
class LoraConfiguration:
    """The adapters that the clients train.

    Args:
        target_modules: PEFT's ``target_modules``: ``"all-linear"``, or names' ends.
        ranks: Ranks, given to the clients in turn; :data:`AUTO` plans them, and each client's
            modules, from ``[resources]``.
        alpha_over_rank: LoRA's alpha over the rank, the same for every client.
        use_rslora: Divide alpha by the square root of the rank instead.
        replan_rounds: Plan again every that many rounds; 0 plans once.
    """

    target_modules: str | tuple[str, ...] = "all-linear"
    ranks: tuple[int, ...] | str = (4, 8, 16, 32)
    alpha_over_rank: float = 2.0
    use_rslora: bool = False
    replan_rounds: int = 0


@dataclass(frozen=True, kw_only=True)
class FederationConfiguration:
    """The federation's shape.

    Args:
        method: An aggregation method's name.
        clients: How many clients there are.
        rounds: How many rounds.
        fraction: Share of the clients that each round asks, above 0 and at most 1.
        seed: Seed of everything random that is not private.
        deadline_seconds: How long a round waits for answers, in seconds.
        minimum_accepted: How many accepted updates a round needs.
        start: Where a client's round starts, one of :data:`intarsia_client.assignment.START_KINDS`;
            empty for the method's own.
        broadcast_rank: Directions of the global adapter that clients are sent; 0 leaves it to the
            method, for the ledger twice the largest client rank.
        residual_rank: Directions beyond those that the server keeps for later rounds.
        upload: Precision of what clients send, one of
            :data:`intarsia_client.assignment.PRECISIONS`.
        download: Precision of what clients are sent, likewise.
        max_examples: A client's declared number of records counts at most so much; 0 for no cap.
    """

    method: str = "ledger"
    clients: int = 8
    rounds: int = 5
    fraction: float = 1.0
    seed: int = 0
    deadline_seconds: float = 3600.0
    minimum_accepted: int = 1
    start: str = ""
    broadcast_rank: int = 0
    residual_rank: int = 256
    upload: str = "float32"
    download: str = "float32"
    max_examples: int = 0


@dataclass(frozen=True, kw_only=True)
class RobustConfiguration:
    """What stands between a dishonest client and the sum.

    Args:
        rule: One of :data:`ROBUST_RULES`.
        max_norm: Bound on the norm of what one client adds, for ``"norm-bound"``; 0 for the median
            of the round's norms.
        byzantine: How many dishonest clients of a round are assumed, for ``"multi-krum"``.
        root: The server's own records, for ``"fltrust"``.
    """

    rule: str = "none"
    max_norm: float = 0.0
    byzantine: int = 0
    root: str = ""


@dataclass(frozen=True, kw_only=True)
class EngineConfiguration:
    """Where the virtual clients run.

    Args:
        grid: One of :data:`GRIDS`.
        workers: Processes that train at the same time.
        gpus_per_worker: Share of a GPU that each of them holds; 0 for the CPU.
        threads: Threads of each of them; 0 shares this machine's cores between them. Sums come out
            in another order with another number, so it is part of what makes two runs equal.
    """

    grid: str = "ray"
    workers: int = 2
    gpus_per_worker: float = 0.0
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfiguration:
    """What is measured on the held-out records.

    Args:
        rounds: The server evaluates every that many rounds; the last one always.
        clients: Whether each client evaluates the final adapter on its own held-out records.
        own_adapters: Whether each client also trains alone for comparison, for as long as the
            federation did.
        max_records: How many held-out records are used, 0 for all.
    """

    rounds: int = 1
    clients: bool = True
    own_adapters: bool = False
    max_records: int = 0


@dataclass(frozen=True, kw_only=True)
class TrackingConfiguration:
    """Where a run can be looked at.

    Args:
        mlflow: Whether the run is mirrored to MLflow in the home.
    """

    mlflow: bool = True
