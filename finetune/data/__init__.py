"""Data: sources, splits, samples, their order, streams, cache and the loader."""
