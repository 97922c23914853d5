"""Languages as parts of a model: how their embeddings begin, what a pack is, and the proof that nothing else moved."""
