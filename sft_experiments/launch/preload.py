"""What the fork server imports once. Freezing the garbage collector keeps the shared pages shared after the fork."""

import gc
import signal

# Ctrl-C at the terminal is for the sweep, which stops its trials in order. It was held back until here (start.py).
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

import sft_experiments.training.worker  # noqa: E402, F401  imports torch, transformers, trl and our training room

gc.collect()
gc.freeze()
