"""`python -m cswap` is the command."""

import sys

from cswap.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
