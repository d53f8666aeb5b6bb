"""Lengths of generated clips, in frames."""

SHORTEST = 4  # one token
MAX_LENGTH = 196
