"""Reproduction study of PersonaVLM.

The subpackages build on each other, and each imports only those before it: memory, models, agent,
simulation, benchmark, evaluation, training, study.
"""
