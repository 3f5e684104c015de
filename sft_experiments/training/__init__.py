"""The heavy half: from a run folder to a trained model."""
