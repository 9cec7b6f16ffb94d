"""Decoders: feature maps to one map for the head."""
