"""The simulated users: plans of their lives, the vocabulary, pictures, and the dialogue generators (Section 4)."""
