"""Robust rules: weights and factors on updates, from inner products of what clients added."""
