"""How commands of this package end."""

import sys
from collections.abc import Callable

__all__ = ["exit_status"]


def exit_status(run: Callable[[], None], *errors: type[Exception]) -> int:
    """Calls ``run``; returns 0, or 2 after one line on stderr for one of ``errors``, or 130 when interrupted.

    ``errors`` are those that users can do something about; of any other the traceback is shown.
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
