"""Continual learning, routing and unlearning methods over adapters."""
