"""The stages of the study and their dependencies. Finished stages are skipped, interrupted ones resumed.

`personavlm reproduce` runs this file. To use other features of Snakemake (clusters, graphs, dry runs), run it yourself;
this command repeats the study with another training seed on the same users, in runs/nano-1 (world_seed=1: on new users):

    snakemake --cores all --config profile=nano run=nano-1 seed=1

The only declared output of a stage is its run.json, because Snakemake deletes declared outputs before it reruns a
stage, and checkpoints and records must survive a rerun.

A stage reruns if its code cells, its parameters or a stage that it needs changed. A saved execution count, another
interpreter and a moved checkout are no reason: notebooks are compared by the hash of their code cells, and the command
is not among the parameters.
"""

import os
import sys

from personavlm_lib.study.chain import needed_stages
from personavlm_lib.study.profiles import ROOT, code_hash, load_profile, notebook, stage_folder, stage_parameters
from personavlm_lib.processes import exit_with_parent

exit_with_parent()  # so that a killed chain leaves no process behind
PROFILE = load_profile(config.get("profile", "nano"), config.get("seed"), config.get("world_seed"))
RUN = str(config.get("run", PROFILE.name))
OPTIONS = ["--profile", config.get("profile", "nano"), "--run", RUN]
OPTIONS += ["--seed", str(PROFILE.seed), "--world-seed", str(PROFILE.world_seed)]
PARAMETERS = {stage: stage_parameters(PROFILE, stage, RUN) for stage in PROFILE.stages}


def record(stage):
    """The stage's run.json, relative to the project if possible, so that a moved checkout is not rerun."""
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
            [record(needed) for needed in needed_stages(PROFILE, stage)],
        output:
            record(stage),
        params:
            # Snakemake compares these: a changed parameter reruns the stage and those that depend on it
            values=PARAMETERS[stage],
            code=code_hash(notebook(stage)),
        threads: workflow.cores or 1  # each stage uses all cores, so stages run one at a time
        priority: 100 - position  # prefer the order of the profile
        shell:
            "{sys.executable:q} -m personavlm_lib run {rule} {OPTIONS:q}"
