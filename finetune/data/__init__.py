"""Where samples come from: label translation, sources and the loader."""
