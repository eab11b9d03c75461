"""The agent: prompts, reply format, and both stages of Algorithm 1."""
