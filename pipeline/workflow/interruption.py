"""Interruption of a command by signals.

Ctrl-C, SIGTERM (schedulers, ``docker stop``) and SIGHUP (closed terminal) raise `Interrupted` in the main thread, so
that open resources are closed. Compiled code delays Python's signal handlers, and a library may catch the exception.
Another thread therefore receives the signal at once, waits `PATIENCE_S` for the main thread, and then kills the
process and its children.
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
"""Schedulers and container services send SIGKILL no earlier than ten seconds after their signal."""

_RETRY_S = 0.05
_cleanups: list[Callable[[], None]] = []


class Interrupted(KeyboardInterrupt):
    """The process was asked to end by a signal.

    Parameters
    ----------
    number : int
        Number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible(report: Callable[[int], None]) -> Iterator[None]:
    """Let signals interrupt the block; for the main thread of a program that ends with the block.

    Only the first signal has an effect, so that later ones do not disturb the cleanup. Signals that the process was
    started to ignore (``nohup``) stay ignored.

    Parameters
    ----------
    report : callable
        ``report(signal)`` is called only if the process is killed.

    Raises
    ------
    Interrupted
        After a signal, in place of any exception that it caused.
    """
    received: list[int] = []
    unwound = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            # An exception within the import of a compiled library may abort the process: try again after it.
            threading.Timer(_RETRY_S, signal.pthread_kill, (threading.main_thread().ident, number)).start()
        elif not received:
            received.append(number)
            if number == signal.SIGHUP:
                _leave_terminal()
            raise Interrupted(number)

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) not in handled:
            pass
        time.sleep(PATIENCE_S)
        _end_children()
        for act in reversed(_cleanups):
            with suppress(Exception):
                act()
        if not unwound.is_set():
            with suppress(Exception):
                report(number)
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    sys.unraisablehook = _unless_interrupted
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException:
        if not received:
            raise
        for act in reversed(_cleanups):
            act()
        raise Interrupted(received[0]) from None
    finally:
        unwound.set()
        # The cleanup is complete: from here signals have the effect that they had before.
        for number in handled:
            signal.signal(number, before[number])


@contextmanager
def closed_by(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when the block is left, again if a signal interrupted it, and before the process is killed."""
    _cleanups.append(act)
    try:
        yield
    finally:
        act()
        _cleanups.remove(act)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave_terminal() -> None:
    """Redirect output from a closed terminal, where writing would raise an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _unless_interrupted(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hide an interruption that arrives while an object is deleted; the process is then killed later."""
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
