"""What an adapter must be before anyone may use it: checked, labelled, traced, then signed.

Admission looks at the bytes and at the base, never at where an adapter says it comes from. An
adapter that was made of others inherits all of their labels, the highest of their levels and the
earliest of their expiries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from intarsia_aggregators.factors import product_norm
from intarsia_client.attachment import attached
from intarsia_client.base_model import BaseModel, head_tensors, linear_modules
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.peft_files import EncodedAdapter, decode_adapter
from intarsia_client.wire import Adapter, LowRankFactors

from intarsia_platform.groups.admitted import Admission, Inheritance
from intarsia_platform.groups.rows import Rights, checked_labels, checked_rights
from intarsia_platform.registry.lineage import Relation
from intarsia_platform.registry.manifest import described, manifest_of
from intarsia_platform.registry.rows import AdapterVersion

_LARGEST = float(np.finfo(np.float32).max)
_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class AdmissionRules:
    """What is let in.

    Args:
        max_rank: Largest rank of a module.
        target_modules: Modules that may be changed, as
            :func:`intarsia_client.base_model.linear_modules` takes them; empty for every linear
            module but the head.
        max_bytes: Most bytes of both files.
        allow_head: Whether a classifier's own head may come along.
    """

    max_rank: int = 256
    target_modules: tuple[str, ...] = ()
    max_bytes: int = 1 << 32
    allow_head: bool = True


def admit_adapter(
    encoded: EncodedAdapter,
    *,
    name: str,
    base: BaseModel,
    labels: Iterable[str],
    parents: Mapping[str, Relation],
    rights: Rights | None = None,
    inherited: Inheritance | None = None,
    rules: AdmissionRules | None = None,
    data: Mapping[str, object] | None = None,
    version: AdapterVersion | None = None,
) -> Admission:
    """Check, label and trace an adapter; nothing is written.

    Args:
        encoded: Its two files, which may come from anyone.
        name: What people shall call it.
        base: The base model that it is for.
        labels: Its own labels.
        parents: Known artefacts that it was made of, at least one.
        rights: Its owner and the like.
        inherited: What its sources hand down; see :func:`combined_rights`.
        rules: What is let in.
        data: What the signed manifest shall say of the data.
        version: Its row where the registry has it already; its run and round are kept.

    Returns:
        The admission.

    Raises:
        InputError: If it is refused; the line says why.
        IntegrityError: If its tensor file is damaged.
    """
    adapter = check_adapter(encoded, base, rules or AdmissionRules())
    inherited = inherited or Inheritance()
    if not parents:
        raise InputError(
            f"lineage of {name}", "none", "name the data or the adapters that it was made of"
        )
    rights = combined_rights(rights or Rights(), inherited)
    known = version or described(adapter, encoded, name=name)
    if known.base_digest not in (None, base.digest):
        raise InputError(f"base of {name}", known.base_digest, f"this base is {base.digest}")
    known = dataclasses.replace(
        known,
        base_digest=base.digest,
        labels=checked_labels({*labels, *known.labels, *inherited.labels}),
    )
    manifest = {**manifest_of(known), **({"data": dict(data)} if data else {})}
    stored = canonical_json(manifest)
    return Admission(
        version=dataclasses.replace(known, manifest_digest=bytes_digest(stored)),
        rights=rights,
        parents=parents,
        encoded=encoded,
        manifest=stored,
    )


def combined_rights(rights: Rights, inherited: Inheritance) -> Rights:
    """Rights that are nowhere wider than those of the sources.

    Args:
        rights: What is asked for.
        inherited: What the sources hand down.

    Returns:
        The rights.

    Raises:
        InputError: If they are none, or the sources belong to another tenant or to several.
    """
    now = datetime.now(UTC)
    checked_rights(rights, now)
    odd = sorted(inherited.tenants - {rights.tenant})
    if odd:
        raise InputError(
            "tenant", rights.tenant or "none", f"its sources belong to {', '.join(odd)}; use that"
        )
    moments = [one for one in (rights.expires_at, inherited.expires_at) if one is not None]
    both = dataclasses.replace(
        rights,
        level=max(rights.level, inherited.level),
        expires_at=min(moments, default=None),
    )
    return checked_rights(both, now)


def check_adapter(encoded: EncodedAdapter, base: BaseModel, rules: AdmissionRules) -> Adapter:
    """Refuse an adapter that may not be attached to the base, or changes nothing there.

    Args:
        encoded: Its two files.
        base: The base model.
        rules: What is let in.

    Returns:
        The decoded adapter, every number finite, its products too.

    Raises:
        InputError: If it is too large, of another task or base, of too high a rank, or changes
            modules that it may not, a head included; or if the base answers with it as without.
        IntegrityError: If its tensor file is damaged.
    """
    if encoded.size > rules.max_bytes:
        raise InputError("adapter", f"{encoded.size} bytes", f"keep it under {rules.max_bytes}")
    adapter = decode_adapter(encoded.configuration, encoded.tensors)
    if adapter.task != base.task:
        raise InputError("adapter's task", adapter.task, f"admit one for {base.task}")
    shapes = linear_modules(base, rules.target_modules or "all-linear")
    for name, factors in adapter.modules.items():
        _check_module(name, factors, shapes, rules)
    _check_head(adapter, base, rules)
    norms = [product_norm(factors) for factors in adapter.modules.values()]
    for name, norm in zip(adapter.modules, norms, strict=True):
        if not norm < _LARGEST:
            raise InputError(f"adapter module {name}", "not finite", "train it again")
    if not any(norms) or not changes_answers(base, adapter):
        raise InputError("adapter", "adds nothing to the base", "train it longer, or on more data")
    return adapter


def changes_answers(base: BaseModel, adapter: Adapter) -> bool:
    """Whether the base with the adapter gives other numbers than without, as it must.

    Args:
        base: The base model.
        adapter: The adapter.

    Returns:
        Whether any output for a fixed probe differs.

    Raises:
        InputError: If the adapter does not fit, or its outputs are not finite.
    """
    rows = base.model.get_input_embeddings().num_embeddings
    length = min(_PROBE_TOKENS, base.longest_sequence)
    probe = torch.arange(2 * length, device=base.device).reshape(2, length) * 7 % rows
    with torch.inference_mode(), base.lock:
        plain = base.model(input_ids=probe).logits
        with attached(base, trainable=None, underneath=adapter) as model:
            changed = model(input_ids=probe).logits
    if not torch.isfinite(changed).all():
        raise InputError("adapter", "its outputs are not finite", "train it again")
    return not torch.equal(plain, changed)


def _check_module(
    name: str,
    factors: LowRankFactors,
    shapes: Mapping[str, tuple[int, int]],
    rules: AdmissionRules,
) -> None:
    thing = f"adapter module {name}"
    if name not in shapes:
        raise InputError(thing, "not one of those that may be changed", "train without it")
    if factors.shape != shapes[name]:
        raise InputError(thing, f"shape {factors.shape}", f"this base has {shapes[name]}")
    if factors.rank > rules.max_rank:
        raise InputError(f"rank of {name}", factors.rank, f"use at most {rules.max_rank}")


def _check_head(adapter: Adapter, base: BaseModel, rules: AdmissionRules) -> None:
    found = {name: tensor.shape for name, tensor in adapter.dense.items()}
    expected = {name: tensor.shape for name, tensor in head_tensors(base).items()}
    if found and not (rules.allow_head and expected):
        raise InputError("adapter", f"brings {min(found)}", "admit low-rank factors alone")
    if found and found != expected:
        raise InputError("adapter's head", found, f"this base and these classes have {expected}")
