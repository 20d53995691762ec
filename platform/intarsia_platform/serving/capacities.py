"""How much memory serving takes where nobody says otherwise."""

BANK_BYTES = 4 << 30
"""Adapters, beside those of running answers that need more."""

PREFIX_BYTES = 1 << 28
"""The beginnings of callers' prompts."""
