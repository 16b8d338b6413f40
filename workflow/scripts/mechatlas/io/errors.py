"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the configuration, the input files or the environment.

    The message is one sentence that names the key or file, the value found and the way out. Scripts
    print it without a traceback and exit with a non-zero status.
    """
