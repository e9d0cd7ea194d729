"""`python -m cswap` is the command."""

from cswap.cli.app import run

if __name__ == "__main__":
    run()
