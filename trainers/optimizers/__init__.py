"""What turns gradients into updates: optimizers, schedules, the average of weights."""
