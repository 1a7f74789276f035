"""``python -m vmxsim`` and the ``vmxsim`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its status."""
    from vmxsim.tools.cli import main as cli

    sys.exit(cli(sys.argv[1:]))


if __name__ == "__main__":
    main()
