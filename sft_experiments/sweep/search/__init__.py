"""Bayesian search with Optuna, an optional package: only what sweep=optuna needs imports this room."""

from sft_experiments.errors import MissingDependencyError

try:
    import optuna  # slow: optuna, 0.4 s, and it may be missing: the message says what to install
except ImportError:
    raise MissingDependencyError("sweep=optuna needs optuna: pip install 'sft-experiments[optuna]'") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)
