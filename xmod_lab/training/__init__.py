"""Runs: assembling data and model, the training step, checkpoints, scores, tracking."""
