"""The command line: one verb per file, imported when it is asked for."""
