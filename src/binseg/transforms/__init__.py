"""Every image becomes numbers here: one preprocessing, one geometry, and the augmentations of training."""
