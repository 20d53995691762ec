"""What all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# A busy machine must not fail a property; and a submission is checked on the same examples twice.
settings.register_profile("intarsia", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("intarsia")

# Tests run in as many processes as there are cores: threads of theirs would only wait for each
# other, spinning. What sets its own number of threads is not touched. PyTorch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Test files anywhere below share what lies beside this one.
sys.path.append(str(Path(__file__).parent))
