"""Intarsia's coordinator: federation, registry, tracking, simulation and the command line."""
