"""From pixels to weights: `loop.resize` is the one function that trains."""
