"""Keeps what the libraries say to themselves out of a person's sight.

To be called before the heavy libraries are imported: several read the environment then.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from intarsia_platform.cli.lines import say

# Set only where the person has not; worker processes inherit them.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_LOG_LEVEL": "ERROR",
    "FLWR_TELEMETRY_ENABLED": "0",
    "GIT_PYTHON_REFRESH": "quiet",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONWARNINGS": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
_LIBRARIES = ("alembic", "httpx", "mlflow", "opacus", "peft", "ray", "sqlalchemy", "torch")
_OWN = ("intarsia_aggregators", "intarsia_client", "intarsia_continual", "intarsia_platform")


def silence_libraries() -> None:
    """Hide the libraries' notices, progress bars and warnings; our own warnings stay."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for library in _LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    for package in _OWN:
        logger = logging.getLogger(package)
        if not any(isinstance(handler, _WarningLines) for handler in logger.handlers):
            logger.addHandler(_WarningLines(logging.WARNING))


class _WarningLines(logging.Handler):
    """Writes our own warnings as the command line writes all of its lines."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")
