"""Exit codes of the commands. A bug, with its traceback, has 1; an interrupted command 128 and the signal's number."""

DONE = 0
USER_ERROR = 2
"""An error in the command, the settings or the data, or a machine that cannot go on."""
SOME_FAILED = 3
"""Finished, but some subjects failed."""
STDOUT_CLOSED = 130
