"""The chain, and the only one: which stage needs which, run by the strict runner, resumed where it stopped.

`python -m personavlm_lib reproduce` calls it. By hand, with all that Snakemake knows (clusters, graphs, dry runs):

    snakemake --cores all --config profile=nano run=nano-1 seed=1       the study under another seed, in runs/nano-1

Only each stage's run.json is declared: Snakemake deletes declared outputs before it runs a stage again, and checkpoints
and records must survive that.
"""

import os
import sys

from personavlm_lib.study.profiles import ROOT, load_profile, notebook, stage_folder, stage_parameters
from personavlm_lib.processes import exit_with_parent

exit_with_parent()  # a killed chain leaves nothing behind
PROFILE = load_profile(config.get("profile", "nano"), config.get("seed"))
RUN = str(config.get("run", PROFILE.name))
PARAMETERS = {stage: stage_parameters(PROFILE, stage, RUN) for stage in PROFILE.stages}
NEEDS = {
    "00_backbone": [],
    "01_synthesize": [],
    "02_sft": ["00_backbone", "01_synthesize"],
    "03_grpo": ["02_sft"],
    # all, not the last alone: a run of weights that are trained already leaves 02 and 03 out
    "04_agent_demo": ["00_backbone", "01_synthesize", "03_grpo"],
    "05_evaluate": ["00_backbone", "01_synthesize", "03_grpo"],
    "06_ablations": ["05_evaluate"],
    "07_personality": ["05_evaluate"],
    "08_audit": ["05_evaluate"],
    "explore_memories": ["05_evaluate"],
    "09_report": [stage for stage in PROFILE.stages if stage not in ("09_report", "explore_memories")],
}


def record(stage):
    """The stage's run.json, relative to the project where possible, so that a moved checkout is not run again."""
    path = stage_folder(RUN, stage) / "run.json"
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


rule all:
    input:
        [record(stage) for stage in PROFILE.stages],


for position, stage in enumerate(PROFILE.stages):

    rule:
        name:
            stage
        input:
            [record(needed) for needed in NEEDS[stage] if needed in PROFILE.stages],
            os.path.relpath(notebook(stage), ROOT),
        output:
            record(stage),
        params:
            # compared by Snakemake: a changed parameter runs the stage, and all that need it, again
            values=PARAMETERS[stage],
            command=[sys.executable, "-m", "personavlm_lib", "run", stage]
            + ["--profile", config.get("profile", "nano"), "--run", RUN, "--seed", str(PROFILE.seed)],
        threads: workflow.cores or 1  # a stage uses all cores itself, so they run one after another
        priority: 100 - position  # in the order of the profile
        shell:
            "{params.command:q}"
