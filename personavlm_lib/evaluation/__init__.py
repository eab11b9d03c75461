"""Scoring of answers: records, intervals, paired tests, the paper's claims and the audit."""
