"""What a person at a terminal sees, and how a process ends that showed it.

Texts are cleaned on their way to a terminal: they may be a stranger's, and command nothing.
"""

import contextlib
import errno
import io
import locale
import logging
import math
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

from cnnlab import signals
from cnnlab.errors import CnnlabError, MachineError, Stopped, translate
from cnnlab.files import printable


def say(*texts: object, sep: str = " ", file: TextIO | None = None, flush: bool = False) -> None:
    """Print texts, by default on standard output."""
    print(printable(sep.join(map(str, texts))), file=file or sys.stdout, flush=flush)


def print_error(error: BaseException) -> None:
    """Print an error as users see it: each line of its message after the program's name, on standard error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()  # or what was said before would stand after it
    for line in str(error).splitlines():
        say(f"cnnlab: error: {line}", file=sys.stderr)


@contextmanager
def exit_on_error(*, debug: bool = False, last: bool = False, hint: str = "", waiting: str = "") -> Iterator[None]:
    """Turn an error or a signal in the block into a message on standard error and the process's exit code.

    Args:
        debug: Show the traceback too.
        last: Whether the process ends after the block, see `signals.handled`.
        hint: What to say after an error that nobody foresaw, if its traceback is not shown.
        waiting: What to say is being done until something is printed; nothing if it is empty.
    """
    _open_streams()
    try:
        _check_working_folder()
        with signals.handled(last=last), Waiting.start(waiting):
            try:
                yield
            except SystemExit as end:
                if not end.code:
                    sys.stdout.flush()
                raise
            sys.stdout.flush()  # a full disk is noticed here, and not when the interpreter ends
    except Stopped as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        cause = translate(error)
        print_error(cause)
        if hint and type(cause) is CnnlabError and cause is not error and not debug:
            say(hint, file=sys.stderr)
        sys.exit(cause.exit_code)


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise MachineError("the working folder was deleted: change into another one.") from error


class Waiting:
    """Say what is being done until something else is printed: nobody should look at an empty terminal.

    On a terminal a line appears after a moment, counts the seconds, and vanishes with the first output. Elsewhere, as
    in a log, a line is written every minute.

    Args:
        text: What is being done.
    """

    first_seconds = 0.1
    terminal_seconds = 0.5
    log_seconds = 60.0
    current: "Waiting | None" = None

    def __init__(self, text: str) -> None:
        self.text = text
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._is_drawn = False
        self._terminal = sys.stderr.isatty()

    @classmethod
    def start(cls, text: str) -> "contextlib.AbstractContextManager[object]":
        """Return a context that waits, or does nothing where there is no text, or somebody waits already."""
        if not text or cls.current is not None or os.environ.get("LOCAL_RANK", "0") != "0":
            return contextlib.nullcontext()
        return cls(text)

    def __enter__(self) -> Self:
        """Start to watch."""
        Waiting.current = self
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Take the line away."""
        self.stop()

    def stop(self) -> None:
        """Take the line away, for good."""
        with self._drawing:
            self._ended.set()
            Waiting.current = None
            if self._is_drawn:
                self._write("\r\x1b[K")
                self._is_drawn = False

    def _watch(self) -> None:
        seconds = self.first_seconds if self._terminal else self.log_seconds
        while not self._ended.wait(seconds):
            seconds = self.terminal_seconds if self._terminal else self.log_seconds
            with self._drawing:
                if not self._ended.is_set():
                    self._draw()

    def _draw(self) -> None:
        elapsed = f"{self.text} ({time.monotonic() - self._start:.0f} s)"
        if self._terminal:
            width = shutil.get_terminal_size().columns
            self._write(f"\r{elapsed[: width - 1]}\x1b[K")
            self._is_drawn = True
        else:
            self._write(f"{elapsed}\n")

    @staticmethod
    def _write(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))  # past our streams, which would end the waiting


def wait_for(text: str) -> None:
    """Say that something else is being waited for, where a `Waiting` is under way."""
    if Waiting.current is not None:
        Waiting.current.text = text


def _stop_waiting() -> None:
    if Waiting.current is not None:
        Waiting.current.stop()


os.register_at_fork(before=_stop_waiting)  # a child has no thread that watches


class _Stream(io.TextIOWrapper):
    """A text stream whose first line ends the waiting."""

    def write(self, text: str) -> int:
        if text:
            _stop_waiting()
        return super().write(text)


class _Output(io.FileIO):
    """A standard stream to which it is all the same whether anybody reads it, as with `| head` or a closed terminal."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._gone: tuple[int | None, ...] = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in self._gone:
                self._gone = (error.errno,)  # once: what Python flushes at its end is not to change the exit code
                raise
            return len(data)


def _open_streams() -> None:
    """Have standard streams that take any text: a closed one leads nowhere, and no encoding lacks a letter."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A test's own stream stays, and one of ours.
        if stream is getattr(sys, f"__{name}__"):
            raw = _Output(1 if name == "stdout" else 2)
            encoding = stream.encoding if stream else locale.getpreferredencoding(False)
            lines = name == "stderr" or raw.isatty()
            if stream:
                stream.flush()
            wrapped = _Stream(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, name, wrapped)


class LogFile(logging.FileHandler):
    """Append to a run's log; where that fails, say so once and go on."""

    _failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            super().emit(record)
        except OSError:  # in opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say what keeps the log from being written."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            with contextlib.suppress(OSError):
                say(f"cnnlab: {self.baseFilename} can't be written: {error.strerror}", file=sys.stderr)


class ConsoleHandler(logging.StreamHandler):
    """Print log records to standard output as it is at that moment, so that a progress bar can hold it.

    Records with a traceback are left to the log file. Where there are several processes, the first one speaks.

    Attributes:
        pause_seconds: The least time between two records that are no warnings; the others are left to the log file.
        last: When the last one was printed, by the monotonic clock.
    """

    pause_seconds = 0.0
    last = -math.inf

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Standard output."""
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, if it is for a person at the terminal."""
        if record.exc_info is not None or os.environ.get("LOCAL_RANK", "0") != "0":
            return
        now = time.monotonic()
        if record.levelno >= logging.WARNING or now - ConsoleHandler.last >= ConsoleHandler.pause_seconds:
            ConsoleHandler.last = now
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text, which commands no terminal."""
        return printable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Keep silent where standard output can't be written; the log file has it all."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
