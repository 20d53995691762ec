"""What a base model is for; apart from training, whose libraries answering does not need."""

from __future__ import annotations

from transformers import AutoConfig


def task_of(base: str) -> str:
    """What a base model is for, by the class that it was saved from.

    Args:
        base: A folder or a hub identifier.

    Returns:
        ``"causal-lm"`` where it was saved with a language model's head, or cannot be read (loading
        it then says why); else ``"sequence-classification"``.
    """
    try:
        names = AutoConfig.from_pretrained(base).architectures or ["ForCausalLM"]
    except Exception:
        return "causal-lm"
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return "causal-lm" if writes else "sequence-classification"
