"""Bayesian search with Optuna, an optional package: only what sweep=optuna needs imports this room."""

from sft_experiments.errors import MissingDependencyError

try:
    import optuna
except ImportError:
    raise MissingDependencyError("sweep=optuna needs optuna: pip install 'sft-experiments[optuna]'") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)
