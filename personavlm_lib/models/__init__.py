"""Chat models: requests and replies, the engine, local models, servers, and the nano model."""
