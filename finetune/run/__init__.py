"""A training run: its folder, checkpoints, log, signals and processes."""
