"""What makes a step fast, and nothing else: each part has a plain equivalent that gives the same numbers.

Each file names its equivalent, and the test that compares the two.
"""
