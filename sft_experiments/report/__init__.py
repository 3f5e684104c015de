"""Compare runs from their folders: the ranked table, the HTML report, and advice with its evidence."""
