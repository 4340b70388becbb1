"""What turns gradients into updates: sums, optimizers, schedules, the average of weights."""
