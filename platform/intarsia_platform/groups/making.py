"""A group made of its records: its adapter trained, described and checked; nothing is written."""

from __future__ import annotations

from pathlib import Path

from intarsia_client.base_model import load_base
from intarsia_client.peft_files import encode_adapter
from intarsia_client.records import records_digest
from intarsia_client.training import Tell

from intarsia_platform.groups.admission import AdmissionRules, admit_adapter
from intarsia_platform.groups.describing import settled_encoder
from intarsia_platform.groups.new_group import Describe, NewGroup
from intarsia_platform.groups.publishing import TrainedGroup
from intarsia_platform.groups.sources import sources_of
from intarsia_platform.groups.tasks import task_of
from intarsia_platform.groups.training import classes_of, settled, train_group
from intarsia_platform.registry.lineage import Relation


def make_group(
    new: NewGroup, *, version: int, describe: Describe, tell: Tell | None = None
) -> TrainedGroup:
    """Train, describe and check a group.

    Args:
        new: What it is made of.
        version: Its version's number.
        describe: Describes it by its texts.
        tell: Called after each step of the training.

    Returns:
        The group, to be published.

    Raises:
        InputError: If something in it cannot be used.
        FederationError: If the training diverged.
    """
    task = new.task or task_of(new.base)
    given = () if new.settings.own_classes else new.settings.classes
    classes = classes_of(new.records, given) if task == "sequence-classification" else ()
    # An adapter names its base by a place that means the same from everywhere.
    folder = Path(new.base).expanduser()
    place = str(folder.absolute()) if folder.is_dir() else new.base
    base = load_base(place, task=task, labels=classes, seed=new.settings.seed)
    settings = settled_encoder(settled(new.settings, base))
    adapter = train_group(base, new.records, settings, tell=tell)
    parents: dict[str, Relation] = {
        records_digest(new.records): "trained-on",
        base.digest: "continued",
    }
    admission = admit_adapter(
        encode_adapter(adapter),
        name=new.name,
        base=base,
        labels=new.labels,
        parents=parents,
        rights=new.rights,
        rules=AdmissionRules(target_modules=settings.target_modules),
        data={"group": new.name, "version": version, "records": len(new.records)},
    )
    texts = [record.text for record in new.records]
    return TrainedGroup(
        settings=settings,
        sources=sources_of(new.records, new.name),
        admission=admission,
        descriptor=describe(base, texts, settings),
    )
