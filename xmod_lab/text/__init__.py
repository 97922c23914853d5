"""From source files to batches: corpus -> tokenizer -> rows -> mixture -> masks -> batches."""
