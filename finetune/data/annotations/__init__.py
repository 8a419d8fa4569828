"""The annotation files of tools, one file a tool: read here, written in `data/writers/`."""
