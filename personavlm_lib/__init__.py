"""PersonaVLM, reproduced: memory, models, agent, world, evaluation, training, study, each knowing only those before."""
