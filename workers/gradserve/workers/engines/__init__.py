"""Engines: each compiles a segment into a callable."""
