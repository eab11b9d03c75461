"""PersonaVLM, reproduced: memory, models, agent, world, evaluation, training and study, each knowing only those before."""
