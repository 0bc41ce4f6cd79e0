"""How a command ends before its time: Ctrl-C, SIGTERM (schedulers, ``docker stop``) and SIGHUP (a terminal that was
closed) raise `Interrupted` in the main thread, so that all that it has opened is closed on the way out.

The main thread may be deep in compiled code, where Python's signal handlers wait, or a library may not let it go. A
thread therefore hears of the signal at once, gives the main thread `PATIENCE_S`, and then ends the process and all that
it has started by force.
"""

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 6.0
"""Schedulers and container services kill ten seconds after their signal at the earliest."""

_last_acts: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Parameters
    ----------
    number : int
        Of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible(tell: Callable[[int], None]) -> Iterator[None]:
    """Let signals interrupt the block; for the main thread of a program that ends with the block.

    The first signal counts and further ones change nothing, so that nothing disturbs what is closed. Signals that the
    process was started to ignore (``nohup``) stay ignored.

    Parameters
    ----------
    tell : callable
        ``tell(signal)`` is called only where the process is ended by force.

    Raises
    ------
    Interrupted
        Once a signal has come, in place of all exceptions: they are what came of it.
    """
    received: list[int] = []
    unwound = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            if number == signal.SIGHUP:
                _leave_terminal()
            raise Interrupted(number)

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) not in heard:
            pass
        time.sleep(PATIENCE_S)
        _end_children()
        for act in reversed(_last_acts):
            with suppress(Exception):
                act()
        if not unwound.is_set():
            with suppress(Exception):
                tell(number)
        os._exit(128 + number)

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    sys.unraisablehook = _unless_interrupted
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException:
        if not received:
            raise
        for act in reversed(_last_acts):
            act()
        raise Interrupted(received[0]) from None
    finally:
        unwound.set()
        # Nothing is left to close: from here a signal may end the process in its own way.
        for number in heard:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def closed_by(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when the block is left, and again if a signal interrupted it; also before an end by force."""
    _last_acts.append(act)
    try:
        yield
    finally:
        act()
        _last_acts.remove(act)


def _leave_terminal() -> None:
    """A closed terminal is read no more, and a line written to it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """A signal that comes while an object is deleted is lost there; the end by force remains."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _end_children() -> None:
    give_up = time.monotonic() + 1
    while (children := _living_children()) and time.monotonic() < give_up:
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        time.sleep(0.05)


def _living_children() -> list[psutil.Process]:
    living = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.status() != psutil.STATUS_ZOMBIE:
                living.append(child)
    return living
