"""`python -m recbole_ssd --key=value`: the command line of an installed package, and of every run of a comparison."""

import sys

from recbole_ssd.command_line import main

if __name__ == "__main__":
    sys.exit(main())
