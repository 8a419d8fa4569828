"""Folders, pairs of names, and splits."""
