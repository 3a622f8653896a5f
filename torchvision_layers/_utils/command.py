"""Exit status of command-line programs."""

import sys
from collections.abc import Callable

__all__ = ["exit_status"]


def exit_status(run: Callable[[], None], *errors: type[Exception]) -> int:
    """Calls ``run`` and returns 0, 2 for one of ``errors``, or 130 if interrupted.

    ``errors`` are the ones that users can fix; they print a single line to stderr. All others propagate.
    """
    try:
        run()
    except errors as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
