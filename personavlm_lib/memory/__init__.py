"""What is remembered: records, the store on disk, search on a timeline, vision, and the personality (Appendix A)."""
