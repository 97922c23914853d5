"""What models and text agree on about labels."""

IGNORE = -100  # the label of a position where nothing is predicted; torch's cross-entropy skips it
