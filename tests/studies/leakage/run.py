"""The leakage study.

    python tests/studies/leakage/run.py [--shared ../shared/data] [--reduced] [--out FOLDER]

What it does and prints stands in docs/leakage.md.
"""

import sys

from leakage_study import main

if __name__ == "__main__":
    sys.exit(main())
