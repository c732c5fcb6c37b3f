"""`python -m trivium` is the command `trivium` (and what `torchrun -m trivium` starts)."""

from __future__ import annotations

import sys

from trivium.cli import main

if __name__ == "__main__":
    sys.exit(main())
