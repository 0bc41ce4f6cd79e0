"""Where the programs ``voxout`` and ``voxout-bids`` start.

Until the command handles signals itself, a signal ends the process at once, with the same line: nothing has begun.
"""

import os
import signal
import sys
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    try:
        os.write(2, f"voxout: interrupted ({name}). Run the same command again to continue.\n".encode())
    finally:  # stderr may be closed
        os._exit(128 + number)


for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    # Signals that the process was started to ignore (nohup) stay ignored.
    if signal.getsignal(_number) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(_number, _end)


def start() -> None:
    """Run the command that the command line names, and end the process with its exit code."""
    from ..workflow.standard_streams import open_closed_streams

    open_closed_streams()
    from .main import main

    sys.exit(main())


def start_bids_app() -> None:
    """Run the BIDS-App as the command line says, and end the process with its exit code."""
    from ..workflow.standard_streams import open_closed_streams

    open_closed_streams()
    from .bids_app import main

    sys.exit(main())
