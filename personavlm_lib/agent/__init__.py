"""PersonaVLM itself: what the model may write, and the Response and Update stages of Algorithm 1."""
