"""How a model is asked: requests and replies, the engine, local models, servers, and the offline nano model."""
