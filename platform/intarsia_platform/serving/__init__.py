"""Answers from one base model and any mixture of adapters per request, at nearly its speed."""
