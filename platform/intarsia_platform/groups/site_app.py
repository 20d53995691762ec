"""A site's side of describing a federated group: a Flower ClientApp beside the one that trains.

What is asked for is computed here, from this site's own records and a public encoder. Of a centroid
or a Gaussian nothing leaves but moments (:mod:`intarsia_platform.groups.moments`) and, sorted, how
the site's left-out texts score. Vectors of single texts leave only where ``document-similarity``
was chosen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_client.shards import shard_of
from intarsia_client.wire import FloatArray
from intarsia_continual.descriptors.base import DescriptorMethod
from intarsia_continual.descriptors.catalog import find_method, probe_of
from intarsia_continual.encoders import BaseModelEncoder, TextEncoder

from intarsia_platform.groups.describing import sentence_encoder
from intarsia_platform.groups.moments import LEAST_TEXTS, Moments

QUESTION = "question"
"""The record of what is asked: the fields of :class:`Question`."""
PART = "part"
"""The record of what a reply says of itself: ``encoder`` and ``texts``."""
VECTORS = "vectors"
"""The record of a message's arrays."""

_FOLDS = 5

app = ClientApp()


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a group is described.

    Args:
        method: A method of the descriptors' catalogue.
        encoder: ``"minilm"`` or ``"base"``.
        base: The base model's path or hub identifier.
        task: One of :data:`intarsia_client.wire.TASKS`.
        labels: Class names in order, for classification.
        seed: Decides which texts are read, where that is less than all.
        most: Texts of a site that are read at most.
    """

    method: str
    encoder: str
    base: str
    task: str
    labels: tuple[str, ...]
    seed: int
    most: int

    @property
    def second(self) -> bool:
        """Whether the method needs second moments."""
        return self.method == "gaussian"

    def as_record(self) -> ConfigRecord:
        """As it travels."""
        return ConfigRecord({**vars(self), "labels": list(self.labels)})

    @classmethod
    def from_message(cls, message: Message) -> Question:
        """Read what :meth:`as_record` wrote.

        Raises:
            InputError: If the message holds something else.
        """
        values: dict[str, Any] = dict(message.content.config_records.get(QUESTION, {}))
        try:
            return cls(**{**values, "labels": tuple(values["labels"])})
        except (KeyError, TypeError) as error:
            raise InputError(
                "question", error, "use the same version of Intarsia at the server and the site"
            ) from None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Texts:
    """A site's texts as vectors.

    Args:
        encoder: Digest of the encoder.
        rows: Vectors of the texts, shape (n, width).
        probes: Vectors of a piece of each, as long as a prompt.
        generator: What else is drawn.
    """

    encoder: str
    rows: FloatArray
    probes: FloatArray
    generator: np.random.Generator

    def reply(self, message: Message, **arrays: FloatArray | np.ndarray[Any, Any]) -> Message:
        part = ConfigRecord({"encoder": self.encoder, "texts": len(self.rows)})
        vectors = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return Message(RecordDict({PART: part, VECTORS: vectors}), reply_to=message)


@app.query("moments")
def moments(message: Message, context: Context) -> Message:
    """Give the moments of this site's texts.

    Args:
        message: A query with a :class:`Question`.
        context: The node's configuration.

    Returns:
        The reply: ``total``, and ``second`` where the method needs it.

    Raises:
        InputError: If the site has too few texts, or cannot encode them.
    """
    question = Question.from_message(message)
    texts = _encoded(question, context)
    own = Moments.of(texts.rows, second=question.second)
    second = {} if own.second is None else {"second": own.second}
    return texts.reply(message, total=own.total, **second)


@app.query("left_out")
def left_out(message: Message, context: Context) -> Message:
    """Score pieces of this site's texts, each by a fit of everybody's texts without a fifth of its.

    Args:
        message: A query with a :class:`Question` and everybody's moments.
        context: The node's configuration.

    Returns:
        The reply: ``scores``, sorted, so that their order says nothing.

    Raises:
        InputError: As :func:`moments`, or if the moments lack this site's own.
    """
    question = Question.from_message(message)
    everybody = read_moments(message)
    texts = _encoded(question, context)
    if everybody.count < len(texts.rows) or everybody.total.shape != texts.rows.shape[1:]:
        raise InputError("moments of all texts", everybody.count, "send those of all sites")
    method = find_method(question.method).method
    scores = _left_out_scores(method, question, texts, everybody)
    return texts.reply(message, scores=np.sort(scores))


@app.query("documents")
def documents(message: Message, context: Context) -> Message:
    """Give vectors of this site's texts, for a method that keeps vectors of texts.

    Args:
        message: A query with a :class:`Question`.
        context: The node's configuration.

    Returns:
        The reply: ``documents`` and ``probes``.

    Raises:
        InputError: As :func:`moments`, or if the method asked for keeps none.
    """
    question = Question.from_message(message)
    if question.method != "document-similarity":
        raise InputError("descriptor", question.method, "ask for moments; it needs no vectors")
    texts = _encoded(question, context)
    return texts.reply(message, documents=texts.rows, probes=texts.probes)


def read_moments(message: Message) -> Moments:
    """Read the moments that a message carries; nothing of them is believed yet.

    Args:
        message: A reply to ``moments``, or a query for ``left_out``.

    Returns:
        The moments.

    Raises:
        InputError: If it carries none.
    """
    part = message.content.config_records.get(PART, ConfigRecord())
    count, arrays = part.get("texts"), read_vectors(message)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or "total" not in arrays:
        raise InputError("moments of texts", "none", "send them with their number")
    return Moments(count=count, total=arrays["total"], second=arrays.get("second"))


def read_vectors(message: Message) -> dict[str, np.ndarray[Any, Any]]:
    """A message's arrays by name, as floating numbers of one or two dimensions.

    Args:
        message: The message.

    Returns:
        The arrays.

    Raises:
        InputError: If one is something else.
    """
    found = {}
    for name, array in message.content.array_records.get(VECTORS, ArrayRecord()).items():
        try:
            values = array.numpy()
        except (TypeError, ValueError) as error:
            raise InputError(f"array {name[:40]}", error, "send it as Flower does") from None
        if values.dtype not in (np.float32, np.float64) or values.ndim not in (1, 2):
            raise InputError(f"array {name[:40]}", values.dtype, "send rows of floating numbers")
        found[name] = values
    return found


def _encoded(question: Question, context: Context) -> _Texts:
    """This site's texts as vectors: each once, evenly drawn where there are more than are read."""
    shard = shard_of(context.node_config, "train")
    name = str(context.node_config.get("client", ""))
    texts = [] if shard is None else list(dict.fromkeys(one.text for one in shard.records))
    if len(texts) < LEAST_TEXTS:
        raise InputError(
            f"texts of {name}", len(texts), f"at least {LEAST_TEXTS} are needed to describe them"
        )
    entropy = hashlib.sha256(f"texts/{question.seed}/{name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(entropy[:16])))
    if len(texts) > question.most:
        drawn = np.sort(generator.permutation(len(texts))[: question.most])
        texts = [texts[place] for place in drawn]
    encoder = _encoder(question)
    pieces = [probe_of(text, generator) for text in texts]
    return _Texts(
        encoder=encoder.digest,
        rows=encoder.encode(texts),
        probes=encoder.encode(pieces),
        generator=generator,
    )


def _encoder(question: Question) -> TextEncoder:
    if question.encoder == "minilm":
        return sentence_encoder()
    base = load_base(question.base, task=question.task, labels=question.labels, seed=question.seed)
    return BaseModelEncoder(base)


def _left_out_scores(
    method: DescriptorMethod, question: Question, texts: _Texts, everybody: Moments
) -> FloatArray:
    scores = []
    order = texts.generator.permutation(len(texts.rows))
    for fold in np.array_split(order, _FOLDS):
        own = Moments.of(texts.rows[fold], second=question.second)
        arrays = method.summarise(everybody.minus(own).sample(), texts.generator)
        scores.append(method.compare(arrays, texts.probes[fold].astype(np.float64)))
    found: FloatArray = np.concatenate(scores).astype(np.float32)
    return found
