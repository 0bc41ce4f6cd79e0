"""Where the program ``voxout`` starts.

Until the command listens to signals itself, a Ctrl-C ends the process at once, without a traceback: nothing has begun.
"""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start() -> None:
    """Run the command that the command line names, and end the process with its exit code."""
    from .main import main

    sys.exit(main())
