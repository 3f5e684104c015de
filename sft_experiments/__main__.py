"""`python -m sft_experiments` and the console script `sft`."""

import sys


def main() -> int:
    from sft_experiments.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
