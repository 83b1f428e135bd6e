"""The command ``diffcache``, and ``python -m diffcache``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit; what it imports first can be interrupted as the commands can."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        from .cli_stopping import NOTHING

        print(f"interrupted: {NOTHING}", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
