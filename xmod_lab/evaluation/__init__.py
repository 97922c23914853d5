"""What a model is good for without any training: likelihoods, slots against one another, retrieval, recognition."""
