"""PEFT adapter directories, read and written without torch.

An adapter is ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes them. What
is written here loads with ``peft.PeftModel.from_pretrained``; what PEFT saved is read here, mixed
ranks (``rank_pattern``, ``alpha_pattern``) and rank-stabilised scaling included. Variants whose
update is not one scaled product B A per linear layer are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import (
    atomic_directory,
    bytes_digest,
    files_digest,
    write_bytes,
)
from intarsia_client.peft_configuration import (
    CONFIGURATION_FILE,
    HEADS,
    MAX_CONFIGURATION_BYTES,
    adapter_configuration,
    declared_rank,
    declared_scaling,
    read_configuration,
)
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

TENSORS_FILE = "adapter_model.safetensors"
MAX_TENSORS_BYTES = 1 << 36
MAX_TENSORS = 100_000

_PREFIX = "base_model.model."
_FACTOR_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


@dataclass(frozen=True, kw_only=True)
class EncodedAdapter:
    """An adapter as the bytes of its two files.

    Args:
        configuration: Bytes of ``adapter_config.json``.
        tensors: Bytes of ``adapter_model.safetensors``.
    """

    configuration: bytes
    tensors: bytes

    @property
    def digest(self) -> str:
        """The adapter's name in the registry; see :func:`adapter_digest`."""
        configuration = json.loads(self.configuration)
        # Where the base lies differs between machines; what the adapter is does not.
        configuration.pop("base_model_name_or_path", None)
        # ASCII, since a stranger's configuration may hold what UTF-8 cannot write.
        text = json.dumps(configuration, sort_keys=True, separators=(",", ":"))
        return files_digest(
            {
                CONFIGURATION_FILE: bytes_digest(text.encode()),
                TENSORS_FILE: bytes_digest(self.tensors),
            }
        )

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.configuration) + len(self.tensors)


def adapter_digest(adapter: Adapter) -> str:
    """Digest of an adapter's tensors and configuration, wherever its base model lies.

    Args:
        adapter: The adapter.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits; equal for equal adapters.
    """
    return encode_adapter(adapter).digest


def encode_adapter(adapter: Adapter) -> EncodedAdapter:
    """Encode an adapter as PEFT's two files; equal adapters give equal bytes.

    Modules of rank 0 are written with one zero direction, since PEFT has no rank 0.

    Args:
        adapter: The adapter.

    Returns:
        The bytes of both files.
    """
    modules = {name: _at_least_rank_one(factors) for name, factors in adapter.modules.items()}
    tensors: dict[str, FloatArray] = {}
    for name, factors in modules.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = factors.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = factors.b
    for name, tensor in adapter.dense.items():
        tensors[f"{_PREFIX}{name}"] = tensor
    parts = {key: np.ascontiguousarray(tensor, dtype="<f4") for key, tensor in tensors.items()}
    configuration = adapter_configuration(adapter, modules)
    return EncodedAdapter(
        configuration=json.dumps(configuration, indent=2, sort_keys=True).encode(),
        tensors=save(parts, metadata={"format": "pt"}),
    )


def decode_adapter(configuration: bytes, tensors: bytes) -> Adapter:
    """Decode PEFT's two files, which may come from anyone.

    Args:
        configuration: Bytes of ``adapter_config.json``.
        tensors: Bytes of ``adapter_model.safetensors``.

    Returns:
        The adapter in float32, every factor finite, every module's shapes consistent with its
        declared rank.

    Raises:
        InputError: If a variant is not bilinear or a declaration does not fit the tensors.
        IntegrityError: If the tensor file is not whole or its header is not true.
    """
    settings = read_configuration(configuration)
    arrays = _read_tensors(tensors)
    sides: dict[str, dict[str, FloatArray]] = {}
    dense: dict[str, FloatArray] = {}
    for key, array in arrays.items():
        name = key.removeprefix(_PREFIX)
        match = _FACTOR_KEY.fullmatch(name)
        if match and name != key:
            _put_once(sides.setdefault(match["module"], {}), match["side"], array, key)
        elif name != key and _is_head(name, settings):
            _put_once(dense, _head_name(name), array, key)
        else:
            raise InputError(
                "adapter tensor", key, "save a plain LoRA adapter of linear layers with PEFT"
            )
    if not sides:
        raise InputError("adapter", "has no LoRA factors", "save it with PEFT after training")
    modules = {name: _factors(name, sides[name], settings) for name in sorted(sides)}
    task = "sequence-classification" if settings.get("task_type") == "SEQ_CLS" else "causal-lm"
    return Adapter(
        base=str(settings.get("base_model_name_or_path") or ""),
        task=task,
        modules=modules,
        dense=dict(sorted(dense.items())),
        fan_in_fan_out=bool(settings.get("fan_in_fan_out", False)),
    )


def read_adapter(directory: Path) -> Adapter:
    """Read a PEFT adapter directory.

    Args:
        directory: The folder with the two files.

    Returns:
        The adapter; see :func:`decode_adapter`.

    Raises:
        InputError: If a file is missing, too large, or of a kind that is refused.
        IntegrityError: If the tensor file is damaged.
    """
    encoded = read_encoded(directory)
    try:
        return decode_adapter(encoded.configuration, encoded.tensors)
    except InputError as error:
        raise InputError(f"{directory}: {error.thing}", error.value, error.remedy) from None
    except IntegrityError as error:
        raise IntegrityError(f"{directory}: {error.thing}", error.value, error.remedy) from None


def read_encoded(directory: Path) -> EncodedAdapter:
    """Read the two files' bytes without decoding them.

    Args:
        directory: The folder.

    Returns:
        The bytes.

    Raises:
        InputError: If a file is missing or larger than an adapter may be.
    """
    parts = []
    for name, limit in (
        (CONFIGURATION_FILE, MAX_CONFIGURATION_BYTES),
        (TENSORS_FILE, MAX_TENSORS_BYTES),
    ):
        path = directory / name
        if not path.is_file():
            pickled = (directory / "adapter_model.bin").exists()
            remedy = (
                "save it again as safetensors; pickle files are never read"
                if pickled
                else "name a folder that PEFT's save_pretrained wrote"
            )
            raise InputError("adapter file", path, remedy)
        if path.stat().st_size > limit:
            raise InputError("adapter file", path, f"keep it under {limit} bytes")
        parts.append(path.read_bytes())
    return EncodedAdapter(configuration=parts[0], tensors=parts[1])


def write_adapter(
    directory: Path, adapter: Adapter, *, manifest: Mapping[str, object] | None = None
) -> EncodedAdapter:
    """Write a PEFT adapter directory, whole or not at all.

    Args:
        directory: The folder to make; it must not exist, or be empty.
        adapter: The adapter.
        manifest: What Intarsia knows of it, written beside it as ``intarsia.json``.

    Returns:
        The bytes that were written.

    Raises:
        InputError: If ``directory`` holds something already.
        StorageError: If it cannot be written.
    """
    encoded = encode_adapter(adapter)
    write_encoded(directory, encoded, manifest=manifest)
    return encoded


def write_encoded(
    directory: Path, encoded: EncodedAdapter, *, manifest: Mapping[str, object] | None = None
) -> None:
    """Write an encoded adapter's directory, whole or not at all.

    Args:
        directory: The folder to make; it must not exist, or be empty.
        encoded: The bytes of both files.
        manifest: Written beside them as ``intarsia.json``.

    Raises:
        InputError: If ``directory`` holds something already.
        StorageError: If it cannot be written.
    """
    with atomic_directory(directory) as temporary:
        write_bytes(temporary / CONFIGURATION_FILE, encoded.configuration)
        write_bytes(temporary / TENSORS_FILE, encoded.tensors)
        if manifest is not None:
            write_bytes(
                temporary / "intarsia.json",
                json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n",
            )


def _at_least_rank_one(factors: LowRankFactors) -> LowRankFactors:
    if factors.rank:
        return factors
    d_out, d_in = factors.shape
    return LowRankFactors(
        a=np.zeros((1, d_in), dtype=np.float32),
        b=np.zeros((d_out, 1), dtype=np.float32),
        scaling=1.0,
    )


def _read_tensors(tensors: bytes) -> dict[str, FloatArray]:
    try:
        parts = deserialize(tensors)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, OverflowError) as error:
        raise IntegrityError(
            TENSORS_FILE, f"not a whole safetensors file ({error})", "send it again"
        ) from None
    if len(parts) > MAX_TENSORS:
        raise InputError(TENSORS_FILE, f"{len(parts)} tensors", f"send at most {MAX_TENSORS}")
    return {name: _float32(name, part) for name, part in parts}


def _float32(name: str, part: Mapping[str, Any]) -> FloatArray:
    data, shape, kind = part["data"], part["shape"], part["dtype"]
    array: FloatArray
    if kind == "F32":
        array = np.frombuffer(data, dtype="<f4").reshape(shape)
    elif kind == "BF16":
        # bfloat16 is the upper half of a float32.
        wide = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        array = wide.view(np.float32).reshape(shape)
    elif kind in ("F16", "F64"):
        stored = np.frombuffer(data, dtype="<f2" if kind == "F16" else "<f8")
        with np.errstate(over="ignore"):
            array = stored.astype(np.float32).reshape(shape)
    else:
        raise InputError(f"adapter tensor {name}", kind, "save it as float32, bfloat16 or float16")
    if not np.isfinite(array).all():
        raise InputError(f"adapter tensor {name}", "not finite", "train again; it holds NaN or Inf")
    return array


def _put_once(arrays: dict[str, FloatArray], name: str, array: FloatArray, key: str) -> None:
    if name in arrays:
        raise InputError("adapter tensor", f"{key} comes twice", "send each parameter once")
    arrays[name] = array


def _is_head(name: str, settings: Mapping[str, Any]) -> bool:
    saved = settings.get("modules_to_save") or []
    return (
        settings.get("task_type") == "SEQ_CLS"
        and name.split(".")[0] in HEADS
        and name.split(".")[0] in saved
    )


def _head_name(name: str) -> str:
    """The head's parameter name in the base model, without PEFT's wrapper in between."""
    return re.sub(r"\.(modules_to_save(\.default)?|original_module)\.", ".", name)


def _factors(
    name: str, sides: Mapping[str, FloatArray], settings: Mapping[str, Any]
) -> LowRankFactors:
    if set(sides) != {"A", "B"}:
        raise InputError(f"module {name}", f"only lora_{min(sides)}", "send both factors")
    a, b = sides["A"], sides["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise InputError(
            f"module {name}",
            f"lora_A {list(a.shape)}, lora_B {list(b.shape)}",
            "send lora_A as (rank, d_in) and lora_B as (d_out, rank)",
        )
    rank = declared_rank(name, settings)
    if rank != a.shape[0]:
        raise InputError(
            f"module {name}",
            f"rank {a.shape[0]}, declared {rank}",
            "send the rank that r or rank_pattern declares",
        )
    return LowRankFactors(a=a, b=b, scaling=declared_scaling(name, a.shape[0], settings))
