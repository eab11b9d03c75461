"""The agent: prompts, reply format, and both stages of Algorithm 1."""

from personavlm_lib.agent.personavlm import PersonaVLM
from personavlm_lib.agent.prompt_sets import PromptSet

__all__ = ["PersonaVLM", "PromptSet"]
