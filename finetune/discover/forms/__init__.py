"""Forms that a file, or the names of folders, tell."""
