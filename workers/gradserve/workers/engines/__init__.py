"""Engines: each a module of three functions.

compile(segment)       the segment as a function from (fed values, state) to fetched values, in the engine's arrays
on_host(values)        those of the values that are arrays, as NumPy's
limit_memory(count, beside)    bounds the bytes that tensors take, where the engine can: a kernel beyond it fails
"""
