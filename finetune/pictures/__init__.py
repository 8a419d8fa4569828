"""Bytes to arrays and back: decoding, TIFF, orientation, channels, limits; drawing."""
