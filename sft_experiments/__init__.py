"""Find out which learning rate, batch size, schedule and data make a model learn a task."""

import logging

# bitsandbytes warns about an optional CPU kernel whenever something imports it, also in runs that do not use it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
