"""Encoders: images to feature maps, finest first."""
