"""How the model learns: the nano backbone, SFT on recordings of the oracle, GRPO with the agent as rollout."""
