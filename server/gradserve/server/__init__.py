"""The coordinator: turns requests into plans and drives them over a fleet of workers."""
