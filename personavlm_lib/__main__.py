"""`python -m personavlm_lib STAGE --profile NAME` runs one stage (see `personavlm_lib.study.runner`);
`python -m personavlm_lib figures` draws `figures/` from the reference run kept in `results/reference/`;
`python -m personavlm_lib locomo FILE` measures evidence recall (see `personavlm_lib.evaluation.locomo`)."""

import os
import sys

import typer

from personavlm_lib.evaluation.locomo import locomo
from personavlm_lib.study.profiles import ROOT
from personavlm_lib.study.runner import main


def draw_reference_figures() -> int:
    """Writes every figure that `results/reference/` (laid out as a run, tables only) suffices for; the exit code."""
    from personavlm_lib.study import figures, report  # only this command needs them

    os.environ["PERSONAVLM_RUNS"] = str(ROOT / "results")
    drawn = report.draw(report.load_evidence("reference"))
    for name, figure in drawn.items():
        print(figures.save(figure, ROOT / "figures", name))
    if not drawn:
        print("results/reference/ holds no tables: copy those of a finished run there", file=sys.stderr)
    return 0 if drawn else 1


if sys.argv[1:2] == ["locomo"]:
    del sys.argv[1]
    typer.run(locomo)
sys.exit(draw_reference_figures() if sys.argv[1:] == ["figures"] else main())
