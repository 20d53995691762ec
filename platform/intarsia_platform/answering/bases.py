"""Which base a service answers with: one model, one task, and the classes of its head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from intarsia_client.base_model import BaseModel, base_digest, load_base
from intarsia_client.errors import InputError

from intarsia_platform.groups.rows import Group
from intarsia_platform.groups.tasks import task_of

_CLASSIFIES = "sequence-classification"


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """What to load.

    Args:
        place: A folder or hub identifier.
        digest: Digest of its files.
        task: One of :data:`intarsia_client.wire.TASKS`.
        classes: Class names in order; none for a causal language model.
    """

    place: str
    digest: str
    task: str
    classes: tuple[str, ...] = ()

    def fits(self, group: Group) -> bool:
        """Whether a group's adapter answers with this base."""
        return (self.digest, self.task, self.classes) == (
            group.base_digest,
            group.task,
            group.settings.classes,
        )

    def load(self) -> BaseModel:
        """Load it; raises as :func:`intarsia_client.base_model.load_base`."""
        return load_base(self.place, task=self.task, labels=self.classes)


def choose_base(
    groups: Sequence[Group],
    *,
    base: str | None = None,
    classes: Sequence[str] = (),
    granted: Collection[str] = (),
) -> BaseChoice:
    """Find the base to answer with.

    Args:
        groups: All groups of the home.
        base: The base's folder or hub identifier, where it is named.
        classes: A classifier's classes in order, where they are named.
        granted: Adapters that whoever asks may use. Where some of them are groups', those decide
            and no other group has a say.

    Returns:
        The base.

    Raises:
        InputError: If none is named and there is no group, or more than one base or set of
            classes is left; the line lists them. Or if the base is not what it was.
    """
    own = [group for group in groups if group.adapter_digest in granted]
    if base is not None:
        digest = base_digest(base)
        fitting = [[one for one in some if one.base_digest == digest] for some in (own, groups)]
        return _with_classes(base, digest, fitting[0] or fitting[1], classes)
    deciding = own or list(groups)
    places = {group.base_digest: group.base for group in deciding}
    if not places:
        raise InputError("base", "the home has no groups", "name one with --base")
    if len(places) > 1:
        listed = ", ".join(sorted(places.values()))
        raise InputError("base", f"the groups have several: {listed}", "name one with --base")
    ((digest, place),) = places.items()
    if base_digest(place) != digest:
        raise InputError(
            "base", f"{place} is another model now", "put the earlier one back, or add groups of it"
        )
    return _with_classes(place, digest, deciding, classes)


def _with_classes(
    base: str, digest: str, groups: Sequence[Group], classes: Sequence[str]
) -> BaseChoice:
    # What is loaded by one place must be found again under it, from everywhere.
    folder = Path(base).expanduser()
    place = str(folder.absolute()) if folder.is_dir() else base
    found = {(group.task, group.settings.classes) for group in groups}
    if classes:
        return BaseChoice(place=place, digest=digest, task=_CLASSIFIES, classes=tuple(classes))
    if not found:
        found = {(task_of(place), ())}
    if len(found) > 1:
        listed = " or ".join(sorted(", ".join(some) or task for task, some in found))
        raise InputError("classes", f"the groups have {listed}", "serve one set of them")
    ((task, own),) = found
    if task == _CLASSIFIES and not own:
        raise InputError("classes", "none are known", "add a group of this base first")
    return BaseChoice(place=place, digest=digest, task=task, classes=own)
