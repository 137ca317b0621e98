"""Run a proof; exit with 1 at the first promise that does not hold."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the worst that an environment can say; it must change nothing

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from tests.prove import child
from tests.prove.table import show

# What stands behind each proof's name: the option that says how much, and its default.
PROOFS = {
    "resume": ("--kills", 200), "signals": ("--each", 100), "faults": ("--damages", 10_000),
    "hostile": ("--inputs", 330), "truth": ("--draws", 200), "budget": ("--kills", 50), "deadlines": ("--runs", 20),
    "waiting": ("--rounds", 3),
}  # fmt: skip
GLANCE = {"resume": 3, "signals": 2, "truth": 1}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    commands = parser.add_subparsers(dest="proof", required=True)
    for name, (option, default) in PROOFS.items():
        commands.add_parser(name).add_argument(option, type=int, default=default, dest="amount")
    commands.add_parser("glance", help="a little of those about resuming")
    given = parser.parse_args()
    amounts = GLANCE if given.proof == "glance" else {given.proof: given.amount}

    child.warm_up()
    code = 0
    for name, amount in amounts.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            proof = importlib.import_module(f"tests.prove.{name}")
            code = code or show(f"{name} {amount}", proof.prove(Path(folder), amount, given.seed))
        print(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
