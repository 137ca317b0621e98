"""Runs of train.py in processes that are forked from one that has imported torch and Lightning already.

They are real processes, which real signals kill; only the four seconds of importing are saved. The parent never
computes anything, so that there is no thread of torch's that a fork would lose.
"""

import importlib
import os
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.prove.table import Broken

Hook = Callable[[Callable[[str], None]], None]


def warm_up() -> None:
    """Import what every run needs."""
    for name in ("cnnlab.fit", "cnnlab.callbacks.figures"):
        importlib.import_module(name)


class Child:
    """A run under way.

    Args:
        arguments: Those of train.py.
        output: The file that gets what it prints.
        hook: Called in the child before train.py; gets a function by which the child tells where it is.
        call: Called in the child in the place of train.py.
    """

    def __init__(
        self, arguments: Sequence[str], output: Path, hook: Hook | None = None, call: Callable[[], object] | None = None
    ) -> None:
        self.output = output
        self._code: int | None = None
        self._read, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            self.started = time.monotonic()
            return
        code = 1
        try:
            os.close(self._read)
            os.setsid()
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
            if hook is not None:
                hook(lambda place: void(os.write(write, place.encode())))
            sys.argv = [str(ROOT / "train.py"), *arguments]
            if call is not None:
                call()
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def reach(self, place: str, times: int = 1, timeout: float = 120) -> bool:
        """Wait until the child has told a place so often; False if it ended before."""
        end = time.monotonic() + timeout
        while times > 0:
            if not select.select([self._read], [], [], max(0, end - time.monotonic()))[0]:
                self.kill(signal.SIGKILL)
                raise Broken(f"a run hung before {place!r}: {self.text()[-2000:]}")
            told = os.read(self._read, 1).decode()
            if not told:
                return False
            times -= told == place
        return True

    def kill(self, signum: int) -> None:
        """Send a signal, if the child is still there."""
        os.kill(self.pid, signum)

    def wait(self, timeout: float = 120) -> int:
        """Return the exit code; negative for the signal that killed it."""
        end = time.monotonic() + timeout
        while self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._read)
                self._code = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                raise Broken(f"a run hung for {timeout:.0f} s: {self.text()[-2000:]}")
            time.sleep(0.005)
        return self._code

    def text(self) -> str:
        """Return what it printed."""
        return self.output.read_text(errors="replace")


def void(_: object) -> None:
    """Return nothing."""


def announce(tell: Callable[[str], None]) -> None:
    """Have a child tell its steps (t), validations (v), saves (c), epochs (n) and test batches (e); slow its saves."""
    from cnnlab import checkpoint
    from cnnlab.callbacks import Checkpoint, StopOnSignal

    def before(owner: type, name: str, place: str) -> None:
        plain = getattr(owner, name)

        def told(*args: object, **kwargs: object) -> object:
            tell(place)
            return plain(*args, **kwargs)

        setattr(owner, name, told)

    before(StopOnSignal, "on_train_batch_end", "t")
    before(StopOnSignal, "on_test_batch_end", "e")
    before(Checkpoint, "on_validation_start", "v")
    before(Checkpoint, "on_train_epoch_start", "n")
    seal = checkpoint.seal

    def slow(content: bytes) -> object:
        tell("c")
        for part in seal(content):
            size = max(1, len(part) // 20)
            for at in range(0, len(part), size):
                yield part[at : at + size]
                time.sleep(0.001)

    checkpoint.seal = slow  # type: ignore[assignment]


def run(arguments: Sequence[str], output: Path, hook: Hook | None = None, timeout: float = 120) -> tuple[int, str]:
    """Run train.py to its end; return the exit code and what it printed."""
    child = Child(arguments, output, hook)
    code = child.wait(timeout)
    return code, child.text()
