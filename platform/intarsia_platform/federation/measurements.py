"""What a client says of an adapter that it measured on its held-out records."""

from __future__ import annotations

from dataclasses import dataclass
from logging import WARNING

from flwr.app import Message, MetricRecord
from flwr.common.logger import log
from intarsia_client.messages import METRICS


@dataclass(frozen=True, kw_only=True)
class ClientMeasurement:
    """One client's measurement of an adapter on its held-out records.

    Args:
        client: The client's name.
        loss: Mean loss, per token or per example.
        perplexity: Per token, for causal language models.
        accuracy: Share between 0 and 1, for classification.
        examples: Held-out records.
        tokens: Predicted tokens.
    """

    client: str
    loss: float
    perplexity: float | None
    accuracy: float | None
    examples: int
    tokens: int


def read_measurement(reply: Message, client: str) -> ClientMeasurement | None:
    """Read a reply to an evaluate message.

    Args:
        reply: The reply, which may be an error.
        client: The client's name.

    Returns:
        The measurement, or None where it has no held-out records or failed.
    """
    if reply.has_error():
        log(WARNING, "node %s: %s", reply.metadata.src_node_id, reply.error.reason)
        return None
    record = reply.content.metric_records.get(METRICS)
    if record is None or not record.get("examples"):
        return None
    return ClientMeasurement(
        client=client,
        loss=_number(record, "loss"),
        perplexity=_number(record, "perplexity") if "perplexity" in record else None,
        accuracy=_number(record, "accuracy") if "accuracy" in record else None,
        examples=int(_number(record, "examples")),
        tokens=int(_number(record, "tokens")),
    )


def _number(record: MetricRecord, name: str) -> float:
    value = record.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else float("nan")
