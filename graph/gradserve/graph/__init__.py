"""The language: graphs, ops, dtypes, shapes, and their form on the wire."""
