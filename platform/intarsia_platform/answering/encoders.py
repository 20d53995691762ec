"""The encoders that descriptors name, opened when one is first wanted."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError
from intarsia_client.wire import FloatArray
from intarsia_continual.encoders import BaseModelEncoder, MiniLMEncoder, TextEncoder


class EncoderShelf:
    """Encoders by digest. Safe for several threads.

    Formal guarantee: a text's vector is a function of that text and the encoder: each text is
    encoded by itself.

    Args:
        base: The base model, whose own hidden states are an encoder too.
    """

    def __init__(self, base: BaseModel) -> None:
        """Keep the base; its weights are there, so its encoder costs nothing."""
        # A tokenizer of its own: an encoder sets how it truncates.
        own = dataclasses.replace(base, tokenizer=copy.deepcopy(base.tokenizer))
        self._base = BaseModelEncoder(own)
        self._sentences: TextEncoder | None = None
        self._absent = False
        self._lock = threading.Lock()

    @property
    def base(self) -> BaseModelEncoder:
        """The base's own hidden states."""
        return self._base

    def has(self, digest: str) -> bool:
        """Whether an encoder is here; one that is installed is opened for it.

        Args:
            digest: The encoder's digest.

        Returns:
            Whether it is.
        """
        return self._find(digest) is not None

    def encode(self, digest: str, text: str) -> FloatArray:
        """Encode one text.

        Args:
            digest: The encoder's digest; one that :meth:`has` found.
            text: The text.

        Returns:
            Shape (width,), of length 1.

        Raises:
            InputError: If there is no such encoder here.
        """
        encoder = self._find(digest)
        if encoder is None:
            raise InputError(
                "encoder", digest, 'install it with pip install "intarsia-continual[minilm]"'
            )
        with self._lock:
            vector: FloatArray = encoder.encode([text])[0]
        return vector

    def encode_all(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts with the base, one by one.

        Args:
            texts: The texts.

        Returns:
            Shape (n, width), float32, rows of length 1.
        """
        vectors = np.zeros((len(texts), self._base.width), dtype=np.float32)
        for place, text in enumerate(texts):
            vectors[place] = self.encode(self._base.digest, text)
        return vectors

    def _find(self, digest: str) -> TextEncoder | None:
        if digest == self._base.digest:
            return self._base
        with self._lock:
            if self._sentences is None and not self._absent:
                try:
                    self._sentences = MiniLMEncoder()
                except InputError:
                    # The package is not installed, and will not be while this process runs.
                    self._absent = True
        found = self._sentences
        return found if found is not None and found.digest == digest else None
