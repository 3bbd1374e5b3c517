"""The adapters of a server: their names, and which of them are in memory."""
