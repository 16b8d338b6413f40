"""Ctrl-C for processes that tests start."""

import signal


def hear() -> None:
    """Let a new process end by SIGINT; give it as ``preexec_fn``.

    A shell without job control starts what runs in the background deaf to it, and that is inherited.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
