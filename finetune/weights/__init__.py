"""Readers of foreign checkpoint files, which rename tensors to the names of Hub files."""
