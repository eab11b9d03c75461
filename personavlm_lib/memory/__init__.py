"""A user's memory: records, storage, search, vision and personality (Appendix A)."""
