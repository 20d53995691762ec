"""What a federation gave: the types that reports, MLflow and ``--json`` are made of.

Each type's ``as_mapping`` is plain JSON; of a whole simulation it is what ``intarsia simulate
--json`` writes. A number that is not finite is written as null, since JSON has no word for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from intarsia_platform.planning.client_plan import RankPlan


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _measured_or_none(mapping: Mapping[str, Any] | None) -> Measured | None:
    return None if mapping is None else Measured.from_mapping(mapping)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's quality on held-out records.

    Args:
        loss: Mean loss: nats per token for a causal language model, nats per record for a
            classifier.
        perplexity: ``exp(loss)`` per token; None for a classifier.
        accuracy: Share of records whose label was found, between 0 and 1; None for a causal
            language model.
    """

    loss: float | None = None
    perplexity: float | None = None
    accuracy: float | None = None

    def as_mapping(self) -> dict[str, float | None]:
        """Plain JSON of the three numbers."""
        return {
            "loss": _finite(self.loss),
            "perplexity": _finite(self.perplexity),
            "accuracy": _finite(self.accuracy),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Measured:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(
            loss=mapping["loss"], perplexity=mapping["perplexity"], accuracy=mapping["accuracy"]
        )


@dataclass(frozen=True, kw_only=True)
class RefusedClient:
    """A client without a part in a round, and why.

    Args:
        client: The client's name.
        reason: A short stable word, such as ``"not-finite"`` or ``"budget"``.
    """

    client: str
    reason: str

    def as_mapping(self) -> dict[str, str]:
        """Plain JSON of the two strings."""
        return {"client": self.client, "reason": self.reason}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RefusedClient:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(client=mapping["client"], reason=mapping["reason"])


@dataclass(frozen=True, kw_only=True)
class ClientRound:
    """What one client did in one round.

    Args:
        client: The client's name.
        rank: Rank at which it trained.
        number_of_examples: Records that it trained on.
        status: ``"accepted"``, ``"refused"``, ``"sat-out"``, ``"failed"`` or ``"late"``.
        train_loss: Mean training loss that it reports, in nats; None where it reports none.
        epsilon: Privacy spent by the client so far; None without differential privacy.
    """

    client: str
    rank: int
    number_of_examples: int
    status: str
    train_loss: float | None = None
    epsilon: float | None = None

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON of all fields."""
        return {
            "client": self.client,
            "rank": self.rank,
            "number_of_examples": self.number_of_examples,
            "status": self.status,
            "train_loss": _finite(self.train_loss),
            "epsilon": _finite(self.epsilon),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ClientRound:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(
            client=mapping["client"],
            rank=mapping["rank"],
            number_of_examples=mapping["number_of_examples"],
            status=mapping["status"],
            train_loss=mapping["train_loss"],
            epsilon=mapping["epsilon"],
        )


@dataclass(frozen=True, kw_only=True)
class RuleDecision:
    """What a robust rule did to one client's admitted update.

    Args:
        client: The client's name.
        outcome: ``"left-out"``, ``"bounded"`` or ``"reweighed"``.
        share_before: The client's share of the round's weight as it came, between 0 and 1.
        share: The same as the rule left it.
        factor: What multiplies what the client added.
    """

    client: str
    outcome: str
    share_before: float
    share: float
    factor: float

    @property
    def influence(self) -> float:
        """What is left of what the client would have had, 1 for all of it."""
        return self.share / self.share_before * self.factor if self.share_before else 0.0

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON of all fields."""
        return {
            "client": self.client,
            "outcome": self.outcome,
            "share_before": self.share_before,
            "share": self.share,
            "factor": self.factor,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RuleDecision:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(
            client=mapping["client"],
            outcome=mapping["outcome"],
            share_before=mapping["share_before"],
            share=mapping["share"],
            factor=mapping["factor"],
        )


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """What one finished round gave.

    Args:
        round: The round's number, from 1.
        test: The global adapter on the server's held-out records; None where it was not measured.
        bytes_up: Bytes that clients sent to the server.
        bytes_down: Bytes that the server sent to clients.
        seconds: Wall time of the round.
        accepted: Number of updates that entered the aggregate.
        refused: Clients whose update was turned away.
        sat_out: Clients that did not take part, such as those without privacy budget.
        epsilon_max: Largest privacy spend of any client so far; None without differential privacy.
        clients: What each client of the round did.
        rank: Rank of the global adapter after the round.
        cut_energy: Share of the squared Frobenius norm of everything added up that was lost for
            good in this round, between 0 and 1.
        residual_energy: Share of it that is held back from the clients for later rounds.
        decisions: What the robust rule did to those whom it did not leave as they were.
    """

    round: int
    test: Measured | None = None
    bytes_up: int
    bytes_down: int
    seconds: float
    accepted: int
    refused: tuple[RefusedClient, ...] = ()
    sat_out: tuple[RefusedClient, ...] = ()
    epsilon_max: float | None = None
    clients: tuple[ClientRound, ...] = ()
    rank: int
    cut_energy: float = 0.0
    residual_energy: float = 0.0
    decisions: tuple[RuleDecision, ...] = ()

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON, with the documented keys of ``--json`` and a few beside them."""
        return {
            "round": self.round,
            "test": None if self.test is None else self.test.as_mapping(),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": self.seconds,
            "accepted": self.accepted,
            "refused": [refused.as_mapping() for refused in self.refused],
            "sat_out": [absent.as_mapping() for absent in self.sat_out],
            "epsilon": {"max": _finite(self.epsilon_max)},
            "clients": [client.as_mapping() for client in self.clients],
            "rank": self.rank,
            "cut_energy": self.cut_energy,
            "residual_energy": self.residual_energy,
            "decisions": [decision.as_mapping() for decision in self.decisions],
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RoundResult:
        """Read back what :meth:`as_mapping` wrote, as a resumed run does with finished rounds."""
        return cls(
            round=mapping["round"],
            test=_measured_or_none(mapping["test"]),
            bytes_up=mapping["bytes_up"],
            bytes_down=mapping["bytes_down"],
            seconds=mapping["seconds"],
            accepted=mapping["accepted"],
            refused=tuple(RefusedClient.from_mapping(entry) for entry in mapping["refused"]),
            sat_out=tuple(RefusedClient.from_mapping(entry) for entry in mapping["sat_out"]),
            epsilon_max=mapping["epsilon"]["max"],
            clients=tuple(ClientRound.from_mapping(entry) for entry in mapping["clients"]),
            rank=mapping["rank"],
            # Files of versions before these have none of the three.
            cut_energy=mapping.get("cut_energy", 0.0),
            residual_energy=mapping.get("residual_energy", 0.0),
            decisions=tuple(
                RuleDecision.from_mapping(entry) for entry in mapping.get("decisions", ())
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AdapterResult:
    """The adapter that a federation ended with.

    Args:
        digest: ``"sha256:…"`` of its content.
        path: The PEFT directory that holds it.
        rank: Its largest rank.
    """

    digest: str
    path: str
    rank: int

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON of the three fields."""
        return {"digest": self.digest, "path": self.path, "rank": self.rank}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> AdapterResult:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(digest=mapping["digest"], path=mapping["path"], rank=mapping["rank"])


@dataclass(frozen=True, kw_only=True)
class ClientEvaluation:
    """One client's held-out records under three models.

    Args:
        client: The client's name.
        base: The base model alone; None where it was not measured.
        own: The base with an adapter trained on this client's records only; None where there is
            none.
        federated: The base with the federated adapter; None where it was not measured.
        rank: Rank at which the client trains.
        train_examples: Records that it trains on.
        test_examples: Records that it holds out.
    """

    client: str
    base: Measured | None = None
    own: Measured | None = None
    federated: Measured | None = None
    rank: int
    train_examples: int
    test_examples: int

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON of all fields."""
        return {
            "client": self.client,
            "base": None if self.base is None else self.base.as_mapping(),
            "own": None if self.own is None else self.own.as_mapping(),
            "federated": None if self.federated is None else self.federated.as_mapping(),
            "rank": self.rank,
            "train_examples": self.train_examples,
            "test_examples": self.test_examples,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> ClientEvaluation:
        """Read back what :meth:`as_mapping` wrote."""
        return cls(
            client=mapping["client"],
            base=_measured_or_none(mapping["base"]),
            own=_measured_or_none(mapping["own"]),
            federated=_measured_or_none(mapping["federated"]),
            rank=mapping["rank"],
            train_examples=mapping["train_examples"],
            test_examples=mapping["test_examples"],
        )


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """All that a simulation gave.

    Args:
        run: The run's name, unique in its home.
        base: The base model alone on the server's held-out records.
        rounds: The finished rounds, in order.
        adapter: The adapter that the last round left.
        clients: Each client's held-out records under three models; empty where not measured.
        plan: What each client was planned to train, one plan for each time that was planned; empty
            where ranks were given.
        configuration: The configuration that made the run, as plain JSON by sections.
        seconds: Wall time of the whole run.
        report: Where ``report.html`` lies; None where none was written.
    """

    run: str
    base: Measured
    rounds: tuple[RoundResult, ...]
    adapter: AdapterResult
    clients: tuple[ClientEvaluation, ...] = ()
    plan: tuple[RankPlan, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    seconds: float
    report: str | None = None

    @property
    def final(self) -> Measured | None:
        """The last measurement of the global adapter, None where no round was measured."""
        measured = [result.test for result in self.rounds if result.test is not None]
        return measured[-1] if measured else None

    def as_mapping(self) -> dict[str, object]:
        """Plain JSON, as ``--json`` writes it."""
        return {
            "run": self.run,
            "base": self.base.as_mapping(),
            "rounds": [result.as_mapping() for result in self.rounds],
            "adapter": self.adapter.as_mapping(),
            "clients": [client.as_mapping() for client in self.clients],
            "plan": [plan.as_mapping() for plan in self.plan],
            "configuration": dict(self.configuration),
            "seconds": self.seconds,
            "report": self.report,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> SimulationResult:
        """Read back what :meth:`as_mapping` wrote, such as a file of ``--json``."""
        return cls(
            run=mapping["run"],
            base=Measured.from_mapping(mapping["base"]),
            rounds=tuple(RoundResult.from_mapping(entry) for entry in mapping["rounds"]),
            adapter=AdapterResult.from_mapping(mapping["adapter"]),
            clients=tuple(ClientEvaluation.from_mapping(entry) for entry in mapping["clients"]),
            # Files of versions before this have none.
            plan=tuple(RankPlan.from_mapping(entry) for entry in mapping.get("plan", ())),
            configuration=mapping["configuration"],
            seconds=mapping["seconds"],
            report=mapping["report"],
        )
