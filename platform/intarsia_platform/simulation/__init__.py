"""A whole federation on machines of one's own, from one configuration file.

The path: configuration -> records, shards, base and plan (``preparation``) -> grid and durable
rounds (``run``) -> measurements (``measurement``) -> result, report, MLflow (``outcome``).
"""

from intarsia_platform.simulation.observer import SimulationObserver
from intarsia_platform.simulation.run import ReportWords, simulate

__all__ = ["ReportWords", "SimulationObserver", "simulate"]
