"""Training: loss, optimizer, step, checkpoints and metrics."""
