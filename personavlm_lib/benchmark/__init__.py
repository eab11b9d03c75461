"""Questions about simulated users, their gold answers, training samples, validation and file formats (Sections 3.2, 4)."""
