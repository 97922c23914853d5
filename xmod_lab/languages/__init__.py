"""Languages as parts of a model: initial embeddings, packs, model folders, and the proof that
adding a language changed nothing else."""
