"""`python -m fluxcore VERB …`: the command line. `./fluxgym` is the same, with its environment made first."""

import sys

from fluxcore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
