"""Names and values of a federation as MLflow takes them: flat, bounded, finite."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from intarsia_platform.results import Measured, RoundResult

ROUND_MARKER = "clients.accepted"
"""A metric that every round has: a step of its history is a round that MLflow already holds."""

LONGEST_PARAMETER = 500


def flatten(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn sections into MLflow's flat parameters.

    Args:
        configuration: Plain JSON, possibly nested.
        prefix: What stands before each key.

    Returns:
        From ``"section.key"`` to the value: strings as they are, everything else as JSON, all cut
        to :data:`LONGEST_PARAMETER` characters.
    """
    flat: dict[str, str] = {}
    for key, value in configuration.items():
        name = f"{prefix}{sanitized(key)}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(text) > LONGEST_PARAMETER:
            text = f"{text[: LONGEST_PARAMETER - 1]}…"
        flat[name] = text
    return flat


def measured_metrics(measured: Measured) -> dict[str, float | None]:
    """MLflow's names of a test measurement.

    Args:
        measured: The measurement.

    Returns:
        From metric to value, None for what does not apply.
    """
    return {f"test.{key}": value for key, value in measured.as_mapping().items()}


def round_metrics(result: RoundResult) -> dict[str, float | None]:
    """MLflow's metrics of one round. None of them is about a single client.

    Args:
        result: The round.

    Returns:
        From metric to value, None for what does not apply.
    """
    metrics: dict[str, float | None] = {
        ROUND_MARKER: result.accepted,
        "clients.refused": len(result.refused),
        "clients.sat_out": len(result.sat_out),
        "bytes.up": result.bytes_up,
        "bytes.down": result.bytes_down,
        "seconds": result.seconds,
        "rank": result.rank,
        "energy.cut": result.cut_energy,
        "energy.residual": result.residual_energy,
        "epsilon.max": result.epsilon_max,
    }
    if result.test is not None:
        metrics |= measured_metrics(result.test)
    reasons = Counter(refused.reason for refused in result.refused)
    outcomes = Counter(decision.outcome for decision in result.decisions)
    metrics |= {f"rule.{sanitized(outcome)}": count for outcome, count in outcomes.items()}
    return metrics | {f"refused.{sanitized(reason)}": count for reason, count in reasons.items()}


def finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Keep what MLflow can hold: it stores an infinity as a finite number.

    Args:
        metrics: From metric to value.

    Returns:
        The metrics whose value is a finite number.
    """
    return {
        key: float(value)
        for key, value in metrics.items()
        if value is not None and math.isfinite(value)
    }


def sanitized(text: str) -> str:
    """Replace what MLflow does not take in a name, or would read as quoting in a search.

    Args:
        text: Any string.

    Returns:
        ``text`` with only letters, digits, spaces and ``_.-``.
    """
    return re.sub(r"[^\w.\- ]", "_", text)
