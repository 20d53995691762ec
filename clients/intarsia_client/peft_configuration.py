"""PEFT's ``adapter_config.json``: what Intarsia writes, what it reads and what it refuses."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from intarsia_client.assignment import lora_scaling
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, LowRankFactors

CONFIGURATION_FILE = "adapter_config.json"
MAX_CONFIGURATION_BYTES = 1 << 22
HEADS = ("classifier", "score")

_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}
# Each of these, when set, changes the update into something other than scaling * B @ A.
_NOT_BILINEAR = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora", "velora_config",
)  # fmt: skip
# These initialisations subtract the start from the base's own weights, so that the file means
# nothing without that changed base.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


def adapter_configuration(
    adapter: Adapter, modules: Mapping[str, LowRankFactors]
) -> dict[str, Any]:
    """PEFT's settings of an adapter.

    Args:
        adapter: The adapter.
        modules: Its modules, each of rank 1 at least.

    Returns:
        JSON values: the commonest rank and alpha as defaults, patterns for the others.
    """
    ranks = {name: factors.rank for name, factors in modules.items()}
    alphas = {name: factors.scaling * factors.rank for name, factors in modules.items()}
    rank = Counter(sorted(ranks.values(), reverse=True)).most_common(1)[0][0]
    alpha = Counter(sorted(alphas.values(), reverse=True)).most_common(1)[0][0]
    classifies = adapter.task == "sequence-classification"
    return {
        # Anchored, since one module's name may be the end of another's.
        "alpha_pattern": {f"^{name}": value for name, value in alphas.items() if value != alpha},
        "base_model_name_or_path": adapter.base,
        "bias": "none",
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": list(HEADS) if classifies else None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {f"^{name}": value for name, value in ranks.items() if value != rank},
        "target_modules": sorted(modules),
        "task_type": _TASK_TYPES[adapter.task],
        "use_rslora": False,
    }


def read_configuration(configuration: bytes) -> dict[str, Any]:
    """Read settings that may come from anyone.

    Args:
        configuration: Bytes of ``adapter_config.json``.

    Returns:
        The settings of a bilinear LoRA adapter.

    Raises:
        InputError: If they are of another kind; names the option that makes it so.
    """
    if len(configuration) > MAX_CONFIGURATION_BYTES:
        raise InputError(
            CONFIGURATION_FILE, f"{len(configuration)} bytes", "send a PEFT configuration"
        )
    try:
        settings = json.loads(configuration)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(CONFIGURATION_FILE, error, "send PEFT's JSON configuration") from None
    if not isinstance(settings, dict):
        raise InputError(CONFIGURATION_FILE, type(settings).__name__, "send a JSON object")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError("peft_type", kind, "only LORA adapters can be aggregated")
    for name in _NOT_BILINEAR:
        if settings.get(name):
            raise InputError(
                f"adapter option {name}", settings[name], "train without it; it is not bilinear"
            )
    if settings.get("bias", "none") != "none":
        raise InputError("adapter option bias", settings["bias"], 'train with bias = "none"')
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise InputError(
            "adapter option init_lora_weights", start, "convert it to plain LoRA when saving"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(name) or {}, dict):
            raise InputError(f"adapter option {name}", settings[name], "send an object")
    return settings


def declared_rank(module: str, settings: Mapping[str, Any]) -> object:
    """The rank that the settings declare for a module, by ``rank_pattern`` or ``r``."""
    return _pattern_value(settings.get("rank_pattern") or {}, module, settings.get("r"))


def declared_scaling(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    """The factor before ``B @ A`` that the settings declare for a module of the given rank.

    Raises:
        InputError: If alpha is not a finite number.
    """
    alpha = _pattern_value(settings.get("alpha_pattern") or {}, module, settings.get("lora_alpha"))
    try:
        finite = isinstance(alpha, int | float) and math.isfinite(float(alpha))
    except OverflowError:
        finite = False
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not finite:
        raise InputError(f"lora_alpha of {module}", str(alpha)[:80], "send a finite number")
    return lora_scaling(alpha, rank, bool(settings.get("use_rslora")))


def _pattern_value(patterns: Mapping[str, Any], module: str, default: object) -> object:
    """PEFT's rule: the first pattern that matches the end of the module's name, else the default.

    Patterns are PEFT's regular expressions; only those made of name characters are followed, so
    that a stranger's file cannot make matching take forever.
    """
    for pattern, value in patterns.items():
        literal = pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
        if not re.fullmatch(r"[\w.\-]+", literal):
            raise InputError("adapter pattern", pattern, "name modules by plain dotted names")
        if module == literal or (not pattern.startswith("^") and module.endswith(f".{literal}")):
            return value
    return default
