"""What each room of the package may import."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("rooms", "absent"),
    [
        (
            ("retrieval", "retrieval_metrics", "descriptors.catalog"),
            ("torch", "transformers", "sklearn", "intarsia_continual.lda_mixture"),
        ),
        (("layerwise",), ("transformers", "sklearn")),
        (("encoders",), ("sklearn", "peft", "intarsia_continual.lda_mixture")),
    ],
    ids=lambda names: ", ".join(names),
)
def test_a_room_imports_no_more_than_it_needs(rooms, absent) -> None:
    program = (
        f"import importlib, sys\n"
        f"for name in {rooms!r}:\n"
        f"    importlib.import_module(f'intarsia_continual.{{name}}')\n"
        f"print([name for name in {(*absent, 'intarsia_platform')!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
