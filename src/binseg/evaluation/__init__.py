"""Scores of a split, and the choices that validation makes."""
