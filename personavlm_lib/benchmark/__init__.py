"""Simulated lives with questions, gold answers, training samples, validation and file formats.

Sections 3.2 and 4 of the paper.
"""
