"""Labelled tasks: reading, encoding, batches, scoring, and the statistics of a transfer."""
