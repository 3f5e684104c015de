"""`python -m sft_experiments` and the console script `sft`."""

import sys

from sft_experiments.commands import main

if __name__ == "__main__":
    sys.exit(main())
