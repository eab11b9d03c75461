"""Run and report the study: profiles, paths, notebook runner, chain, figures, tables and report."""
