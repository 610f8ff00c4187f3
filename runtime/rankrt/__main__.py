"""`python -m rankrt`: the command, where the script of that name is not on the path."""

import sys

from rankrt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
