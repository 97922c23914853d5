"""How good a model is: scores of held-out text, of slots, of sentences and of labelled tasks."""
