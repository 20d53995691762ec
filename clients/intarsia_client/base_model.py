"""The frozen base model: found, checked, loaded once per process and shared by every client in it.

Nothing in here changes with a client. What a client adds is attached for the duration of a block
(see :mod:`intarsia_client.attachment`) and taken away again.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from torch import nn
from transformers.pytorch_utils import Conv1D

from intarsia_client.errors import InputError
from intarsia_client.files import file_digest, files_digest
from intarsia_client.peft_configuration import HEADS
from intarsia_client.wire import TASKS, FloatArray

_REMEDY = "give a folder with a transformers model or a hub identifier that can be reached"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_KEPT_BASES = 2

_loaded: OrderedDict[tuple[object, ...], BaseModel] = OrderedDict()
_loading = threading.Lock()
_file_digests: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """A frozen transformers model and what belongs to it.

    Args:
        model: The model in evaluation mode, float32, no parameter requiring a gradient.
        tokenizer: Its tokenizer.
        digest: :func:`base_digest` of its files.
        task: One of :data:`intarsia_client.wire.TASKS`.
        base: The folder or hub identifier as it was given.
        directory: Where its files lie on this machine.
        device: Where its weights are.
        labels: Class names in order, for classification.
        lock: Held while an adapter is attached; one at a time per model.
        layers: What :mod:`intarsia_client.attachment` keeps for the next adapter.
    """

    model: Any
    tokenizer: Any
    digest: str
    task: str
    base: str
    directory: Path
    device: torch.device
    labels: tuple[str, ...] = ()
    lock: Any = field(default_factory=threading.RLock, repr=False)
    layers: dict[object, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def pad_token_id(self) -> int:
        """The token that fills a batch up; it is masked, so any token of the vocabulary serves."""
        return int(self.model.config.pad_token_id)

    @property
    def longest_sequence(self) -> int:
        """How many tokens the model accepts at once, a very large number where it has no bound."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 1 << 30
        return int(min(positions, self.tokenizer.model_max_length))

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base keeps its linear weights as (d_in, d_out), as GPT-2 does."""
        return any(isinstance(module, Conv1D) for module in self.model.modules())


def load_base(base: str, *, task: str, labels: Sequence[str] = (), seed: int = 0) -> BaseModel:
    """Load a base model, or give the one that this process has loaded already.

    Args:
        base: A folder with a transformers model, or a hub identifier; files on this machine are
            tried first.
        task: ``"causal-lm"`` or ``"sequence-classification"``.
        labels: Class names in order, for classification.
        seed: Decides a classification head that the base does not bring, so that every process
            starts from the same one.

    Returns:
        The shared model; the last two stay loaded.

    Raises:
        InputError: If the base is not there, is broken, has no tokenizer or does not fit the task.
    """
    labels = tuple(labels)
    if task not in TASKS:
        raise InputError("model.task", task, f"choose one of {', '.join(TASKS)}")
    if task == "sequence-classification" and len(set(labels)) < max(2, len(labels)):
        raise InputError("labels", list(labels), "give at least two, each once")
    key = (base, task, labels, seed)
    with _loading:
        if key not in _loaded:
            directory = _find(base)
            _loaded[key] = _load(base, directory, task, labels, seed)
            while len(_loaded) > _KEPT_BASES:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def base_digest(base: str) -> str:
    """Digest of a base model's configuration and weights, wherever they lie.

    The files are hashed, never unpickled; each is read again only when it has changed.

    Args:
        base: A folder or a hub identifier.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits.

    Raises:
        InputError: If the base is not there or brings no safetensors file.
    """
    return _directory_digest(_find(base))


def linear_modules(
    base: BaseModel, target_modules: str | Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Full names and shapes of the linear modules that a choice of target modules means.

    Args:
        base: The base model.
        target_modules: ``"all-linear"`` for every linear module but the output head; or one name
            or several, each a full name or its end (``"q_proj"``).

    Returns:
        From each module's full name, in the model's order, to its (d_out, d_in).

    Raises:
        InputError: If a name fits no linear module.
    """
    classifies = base.task == "sequence-classification"
    shapes = {
        name: _linear_shape(module)
        for name, module in base.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not (_is_head(name) and classifies)
    }
    if target_modules == "all-linear":
        head = base.model.get_output_embeddings()
        return {
            name: shape
            for name, shape in shapes.items()
            if base.model.get_submodule(name) is not head
        }
    wanted = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    chosen: set[str] = set()
    for target in wanted or [""]:
        found = {name for name in shapes if name == target or name.endswith(f".{target}")}
        if not found:
            ends = sorted({name.rpartition(".")[2] for name in shapes})
            raise InputError(
                "lora.target_modules", target, f"choose all-linear or among {', '.join(ends[:12])}"
            )
        chosen |= found
    return {name: shape for name, shape in shapes.items() if name in chosen}


def head_tensors(base: BaseModel) -> dict[str, FloatArray]:
    """The classification head as the base (or the seed) has it.

    Args:
        base: The base model.

    Returns:
        From each of the head's parameter names, sorted, to its values in float32; empty for a
        causal language model.
    """
    if base.task != "sequence-classification":
        return {}
    parameters = sorted(base.model.named_parameters())
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in parameters
        if _is_head(name)
    }


def precision(base: BaseModel) -> AbstractContextManager[object]:
    """The arithmetic to run the model in: bfloat16 autocast where the GPU has it, else float32."""
    if base.device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _find(base: str) -> Path:
    """The folder with the base's files, fetched from the hub where it is not here."""
    directory = Path(base).expanduser()
    if directory.is_dir():
        return directory
    for offline in (True, False):
        try:
            found = snapshot_download(
                base, allow_patterns=list(_HUB_PATTERNS), local_files_only=offline
            )
        except Exception:  # noqa: S112 - every reason has the same remedy, given below
            continue
        if _weight_files(Path(found)):
            return Path(found)
    raise InputError("model.base", base, _REMEDY)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if (directory / _INDEX).is_file():
        return [directory / _INDEX, *sorted(directory.glob("model-*.safetensors"))]
    return []


def _directory_digest(directory: Path) -> str:
    configuration = directory / "config.json"
    if not configuration.is_file():
        raise InputError("model.base", f"{directory} (no config.json)", _REMEDY)
    weights = _weight_files(directory)
    if not weights:
        pickled = any(directory.glob("*.bin"))
        raise InputError(
            "model.base",
            f"{directory} (no {_WEIGHTS})",
            "save it as safetensors; pickle files are never read" if pickled else _REMEDY,
        )
    return files_digest({path.name: _digest_once(path) for path in [configuration, *weights]})


def _digest_once(path: Path) -> str:
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    if key not in _file_digests:
        _file_digests[key] = file_digest(path)
    return _file_digests[key]


def _load(base: str, directory: Path, task: str, labels: tuple[str, ...], seed: int) -> BaseModel:
    digest = _directory_digest(directory)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise _broken(base, "tokenizer", error) from None
        try:
            model, loading = _load_weights(directory, task, labels, seed)
        except Exception as error:
            raise _broken(base, "model", error) from None
    _check_complete(base, model, loading, task)
    _set_pad_token(model, tokenizer)
    model.requires_grad_(False)
    model.eval()
    loaded = BaseModel(
        model=model.to(device),
        tokenizer=tokenizer,
        digest=digest,
        task=task,
        base=base,
        directory=directory,
        device=device,
        labels=labels,
    )
    _check_vocabulary(loaded)
    if task == "causal-lm":
        _check_causal(loaded)
    return loaded


def _load_weights(
    directory: Path, task: str, labels: tuple[str, ...], seed: int
) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {}
    kind = transformers.AutoModelForCausalLM
    if task == "sequence-classification":
        kind = transformers.AutoModelForSequenceClassification
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "ignore_mismatched_sizes": True,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, loading = kind.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    return model, loading


def _check_complete(base: str, model: Any, loading: dict[str, Any], task: str) -> None:
    """Refuse weights that are not the whole model; only a classifier's own parts may be new."""
    absent = {str(name) for name in loading["missing_keys"]}
    absent |= {str(item[0]) for item in loading["mismatched_keys"]}
    if task == "sequence-classification":
        inside = f"{model.base_model_prefix}."
        absent = {name for name in absent if name.startswith(inside) and ".pooler." not in name}
        if not any(_is_head(name) for name, _ in model.named_parameters()):
            raise InputError(
                "model.base", base, f"choose one whose head is called {' or '.join(HEADS)}"
            )
    if absent:
        raise InputError(
            "model.base", f"{base} (its weights lack {min(absent)})", f"{_REMEDY} for {task}"
        )


def _set_pad_token(model: Any, tokenizer: Any) -> None:
    choices = (
        tokenizer.pad_token_id,
        model.config.pad_token_id,
        tokenizer.eos_token_id,
        model.config.eos_token_id,
    )
    model.config.pad_token_id = next((one for one in choices if isinstance(one, int)), 0)


def _check_vocabulary(base: BaseModel) -> None:
    rows = base.model.get_input_embeddings().num_embeddings
    largest = max(base.tokenizer.get_vocab().values(), default=-1)
    if largest >= rows or not 0 <= base.pad_token_id < rows:
        raise InputError(
            "model.base",
            f"{base.base} (token {max(largest, base.pad_token_id)}, {rows} embeddings)",
            "give it the tokenizer that it was trained with",
        )


def _check_causal(base: BaseModel) -> None:
    """An encoder sees the token that it should predict; its perplexity would mean nothing."""
    tokens = torch.tensor([[0, 1], [0, 2]], device=base.device)
    with torch.inference_mode():
        first = base.model(input_ids=tokens, use_cache=False).logits[:, 0]
    if not torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-4):
        raise InputError(
            "model.base",
            f"{base.base} (it looks ahead)",
            'choose a causal language model or task = "sequence-classification"',
        )


def _linear_shape(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return int(module.out_features), int(module.in_features)
    return int(module.weight.shape[1]), int(module.weight.shape[0])  # type: ignore[index]


def _is_head(name: str) -> bool:
    return name.split(".")[0] in HEADS


def _broken(base: str, part: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        "model.base", f"{base} (its {part} does not load: {reason[0][:200]})", _REMEDY
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' load report and progress bar off a person's terminal."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
