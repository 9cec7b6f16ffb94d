"""From pixels to weights: `loop.fit` is the one function that trains."""
