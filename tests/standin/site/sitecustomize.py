"""Gives every Python process that sees this folder the stand-in GPU, or as many of them as STANDIN says."""

import os
import sys
from pathlib import Path

if os.environ.get("STANDIN") and "pip" not in Path(sys.argv[0] if hasattr(sys, "argv") and sys.argv else "").name:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests import standin

    standin.install(count=int(os.environ["STANDIN"]))
