"""Training: the nano backbone, SFT on the oracle's recordings, GRPO with the agent as rollout."""
