"""The `pkm` command: parses words, calls the façade, prints."""
