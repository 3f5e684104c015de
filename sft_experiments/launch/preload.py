"""What the fork server imports once. Freezing the garbage collector keeps the shared pages shared after the fork."""

import gc

gc.collect()


gc.freeze()
