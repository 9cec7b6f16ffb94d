"""From pixels to weights: batches, optimisers, schedules, and the one function that trains."""
