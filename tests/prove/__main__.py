"""Run a proof; exit with 1 at the first promise that does not hold."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # the worst that an environment can say; it must change nothing

import argparse
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prove", description=__doc__)
    commands = parser.add_subparsers(dest="proof", required=True)
    for name, option, default in (
        ("resume", "kills", 200), ("signals", "each", 100), ("faults", "damages", 10_000), ("hostile", "inputs", 50),
    ):  # fmt: skip
        command = commands.add_parser(name)
        command.add_argument(f"--{option}", type=int, default=default, dest="amount")
        command.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    from tests.prove import child, faults, hostile, resume, signals
    from tests.prove.table import show

    child.warm_up()
    proof = {"resume": resume, "signals": signals, "faults": faults, "hostile": hostile}[given.proof].prove
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        code = show(f"{given.proof} {given.amount}", proof(Path(folder), given.amount, given.seed))
    print(f"{time.monotonic() - began:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
