"""Find out which learning rate, batch size, schedule and data make a model learn a task."""

__version__ = "0.1.0"
