"""MLflow's view of federations; the only room that imports MLflow."""

from intarsia_platform.tracking.base import NullTracker, RunStatus, Tracker
from intarsia_platform.tracking.federation import FederationTracker, tracking_uri

__all__ = ["FederationTracker", "NullTracker", "RunStatus", "Tracker", "tracking_uri"]
