"""What is worked on: the engine's thread, the answers as they grow, and how much there is room for."""
