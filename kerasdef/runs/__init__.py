"""What is stored of a run: finished pieces, seeds, costs, progress."""
