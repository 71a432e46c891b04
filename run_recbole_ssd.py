"""Trains and evaluates one model: `python run_recbole_ssd.py --help`."""

import sys

from recbole_ssd.command_line import main

if __name__ == "__main__":
    sys.exit(main())
