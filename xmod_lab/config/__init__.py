"""Settings: their schema, and the rules that hold between them."""
