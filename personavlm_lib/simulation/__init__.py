"""Simulated users: life plans, vocabulary, pictures and dialogue generators (Section 4)."""
