"""One run: its folder, checkpoints, log, signals, processes."""
