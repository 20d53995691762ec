"""PEFT adapter directories, read and written without torch.

An adapter is ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes them. What
is written here loads with ``peft.PeftModel.from_pretrained``; what PEFT saved is read here, mixed
ranks (``rank_pattern``, ``alpha_pattern``) and rank-stabilised scaling included. Variants whose
update is not one scaled product B A per linear layer are refused by name.
"""

from __future__ import annotations

import json
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
    MAX_CONFIGURATION_BYTES,
    adapter_configuration,
    read_configuration,
)
from intarsia_client.peft_tensors import (
    HEAD,
    check_finite,
    check_kind,
    check_sides,
    checked_scaling,
    float32_values,
    parameter_of,
    put_once,
    tensor_key,
)
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

TENSORS_FILE = "adapter_model.safetensors"
MAX_TENSORS_BYTES = 1 << 36
MAX_TENSORS = 100_000


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
        return encoded_digest(self.configuration, bytes_digest(self.tensors))

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return len(self.configuration) + len(self.tensors)


def encoded_digest(configuration: bytes, tensors_digest: str) -> str:
    """Digest of an adapter's two files, wherever its base model lies.

    Args:
        configuration: Bytes of ``adapter_config.json``.
        tensors_digest: Digest of ``adapter_model.safetensors``.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits.
    """
    settings = json.loads(configuration)
    # Where the base lies differs between machines; what the adapter is does not.
    settings.pop("base_model_name_or_path", None)
    # ASCII, since a stranger's configuration may hold what UTF-8 cannot write.
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return files_digest(
        {CONFIGURATION_FILE: bytes_digest(text.encode()), TENSORS_FILE: tensors_digest}
    )


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
        tensors[tensor_key(f"{name}.lora_A.weight")] = factors.a
        tensors[tensor_key(f"{name}.lora_B.weight")] = factors.b
    for name, tensor in adapter.dense.items():
        tensors[tensor_key(name)] = tensor
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
    sides, dense = decode_parts(settings, tensors)
    if not sides:
        raise InputError("adapter", "has no LoRA factors", "save it with PEFT after training")
    modules = {name: _factors(name, sides[name], settings) for name in sorted(sides)}
    return configured_adapter(settings, modules, dense)


def configured_adapter(
    settings: Mapping[str, Any],
    modules: Mapping[str, LowRankFactors],
    dense: Mapping[str, FloatArray],
) -> Adapter:
    """An adapter of the base and task that its configuration names.

    Args:
        settings: What :func:`~intarsia_client.peft_configuration.read_configuration` gave.
        modules: Its factors.
        dense: Its head.

    Returns:
        The adapter.
    """
    task = "sequence-classification" if settings.get("task_type") == "SEQ_CLS" else "causal-lm"
    return Adapter(
        base=str(settings.get("base_model_name_or_path") or ""),
        task=task,
        modules=modules,
        dense=dense,
        fan_in_fan_out=bool(settings.get("fan_in_fan_out", False)),
    )


def decode_parts(
    settings: Mapping[str, Any], tensors: bytes
) -> tuple[dict[str, dict[str, FloatArray]], dict[str, FloatArray]]:
    """Decode a tensor file that may come from anyone, and may lack factors.

    Args:
        settings: What :func:`~intarsia_client.peft_configuration.read_configuration` gave.
        tensors: Bytes of ``adapter_model.safetensors``.

    Returns:
        From each module to its factors by side, ``"A"`` and ``"B"``, those that are there; and the
        head's tensors by name, sorted. All in float32 and finite; shapes are not checked.

    Raises:
        InputError: If there is a tensor of another kind.
        IntegrityError: If the file is not whole or its header is not true.
    """
    sides: dict[str, dict[str, FloatArray]] = {}
    dense: dict[str, FloatArray] = {}
    for key, array in _read_tensors(tensors).items():
        side, name = parameter_of(key, settings)
        if side == HEAD:
            put_once(dense, name, array, key)
        else:
            put_once(sides.setdefault(name, {}), side, array, key)
    return sides, dict(sorted(dense.items()))


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
    configuration, tensors = adapter_files(directory)
    return EncodedAdapter(configuration=configuration.read_bytes(), tensors=tensors.read_bytes())


def adapter_files(directory: Path) -> tuple[Path, Path]:
    """The two files of an adapter directory, both there and no larger than an adapter may be.

    Args:
        directory: The folder.

    Returns:
        The configuration and the tensors.

    Raises:
        InputError: If a file is missing or larger than an adapter may be.
    """
    paths = directory / CONFIGURATION_FILE, directory / TENSORS_FILE
    for path, limit in zip(paths, (MAX_CONFIGURATION_BYTES, MAX_TENSORS_BYTES), strict=True):
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
    return paths


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


def _float32(key: str, part: Mapping[str, Any]) -> FloatArray:
    check_kind(key, part["dtype"])
    array = float32_values(part["data"], part["dtype"]).reshape(part["shape"])
    check_finite(key, array)
    return array


def _factors(
    name: str, sides: Mapping[str, FloatArray], settings: Mapping[str, Any]
) -> LowRankFactors:
    check_sides(name, sides)
    a, b = sides["A"], sides["B"]
    return LowRankFactors(a=a, b=b, scaling=checked_scaling(name, a.shape, b.shape, settings))
