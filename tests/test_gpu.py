"""On a real GPU: `pytest -m gpu`; the checks are in tests/gpu.py."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def place() -> Iterator[gpu.Place]:
    place = gpu.Place()
    yield place
    gpu.remove(place)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """What the checks came to so far."""
    return []


@pytest.mark.parametrize("check", gpu.CHECKS)
def test_on_a_gpu(check: str, place: gpu.Place, rows: list[dict[str, Any]]):
    row: dict[str, Any] = {"check": check, "outcome": "FAILED", "figures": {}}
    rows.append(row)
    start = time.monotonic()
    try:
        row["figures"] = gpu.CHECKS[check](place)
        row["outcome"] = "passed"
    except pytest.skip.Exception as reason:
        row |= {"outcome": "skipped", "figures": {"why": str(reason)}}
        raise
    except BaseException as error:
        row["figures"] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"}
        raise
    finally:
        row["seconds"] = round(time.monotonic() - start, 1)
        if os.environ.get("GPU_JSON"):  # after each check, so that nothing is lost where the time is cut short
            Path(os.environ["GPU_JSON"]).write_text(json.dumps(rows, indent=2) + "\n")
