"""`python -m benchmark COMMAND`: the same as `ood-benchmark COMMAND`, in a checkout without an installation, too."""

import sys

from benchmark.commands.app import main

if __name__ == "__main__":
    sys.exit(main())
