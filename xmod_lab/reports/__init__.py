"""The page that shows what a run did: read from the run dir alone, written as one self-contained
HTML file."""
