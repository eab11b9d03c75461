"""How the study is run and told: profiles and paths, the notebook runner, figures, tables and the report."""
