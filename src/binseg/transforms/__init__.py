"""Turn images into model inputs: one preprocessing, one geometry, and training's augmentation."""
