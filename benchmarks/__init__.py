"""Measurements that compare with a peer in the same run and print ratios: `python -m benchmarks`."""
