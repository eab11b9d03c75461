"""How answers are scored: records, intervals and paired tests, the paper's claims, the audit of its numbers."""
