"""What the fork server imports once. Freezing the garbage collector keeps the shared pages shared after the fork."""

import gc

import sft_experiments.training.worker  # noqa: F401  imports torch, transformers, trl and our training room

gc.collect()
gc.freeze()
