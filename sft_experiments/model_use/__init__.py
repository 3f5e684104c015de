"""What one does with a finished run: train again with changes, evaluate, chat, export."""
