"""One base and its adapters behind HTTP: what a server needs beside the engine."""
