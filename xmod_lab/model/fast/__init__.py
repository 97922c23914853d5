"""Code that only makes a step faster. Each part has a plain equivalent with the same results.

Each file names its equivalent, and the test that compares the two.
"""
