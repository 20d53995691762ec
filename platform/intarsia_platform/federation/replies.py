"""What a reply weighs and what it says that it cost, before anyone looks into its adapter."""

from __future__ import annotations

from flwr.app import Message
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import InputError
from intarsia_client.messages import read_update_content
from intarsia_client.wire import UpdateManifest

from intarsia_platform.federation.admission import is_plausible
from intarsia_platform.registry.rows import PrivacySpendRow


def claimed_spend(reply: Message, assignment: TrainAssignment) -> PrivacySpendRow | None:
    """What a client says that it spent on an assignment, whether or not its update is used.

    Args:
        reply: A reply without error.
        assignment: What the client was asked to do.

    Returns:
        The spend; None where it names none, one that is of another assignment, or one that cannot
        be what was asked for.
    """
    try:
        manifest = UpdateManifest.from_json(read_update_content(reply).manifest)
    except InputError:
        return None
    ours = (assignment.run, assignment.client, assignment.round)
    spend = manifest.privacy
    if spend is None or not is_plausible(spend, assignment):
        return None
    if (manifest.run, manifest.client, manifest.round) != ours:
        return None
    return PrivacySpendRow(
        scope=manifest.run,
        client=manifest.client,
        round=manifest.round,
        unit=spend.unit,
        noise_multiplier=spend.noise_multiplier,
        sample_rate=spend.sample_rate,
        steps=spend.steps,
        delta=spend.delta,
        max_grad_norm=spend.max_grad_norm,
    )


def reply_size(reply: Message) -> int:
    """Bytes of a reply's arrays and texts."""
    arrays = sum(
        len(array.data)
        for record in reply.content.array_records.values()
        for array in record.values()
    )
    texts = sum(
        len(str(value))
        for record in reply.content.config_records.values()
        for value in record.values()
    )
    return arrays + texts
