"""The heavy half: from a run folder to a trained model."""

import logging

# bitsandbytes warns about an optional CPU kernel whenever something imports it, also in runs that do not use it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
