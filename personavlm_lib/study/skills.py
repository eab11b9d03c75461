"""The skill suite from the command line: models by name, a table, JSON, and a radar."""

import json as serial
import time
from pathlib import Path

import pandas as pd

from personavlm_lib.agent.prompts import PromptSet
from personavlm_lib.evaluation import skills
from personavlm_lib.models.local import LocalModel
from personavlm_lib.study import figures
from personavlm_lib.study.given import open_eyes
from personavlm_lib.study.profiles import STAGES, require
from personavlm_lib.training.clip import concept_top1


def model_named(name: str) -> LocalModel:
    """A hub id, a folder, or RUN/STAGE: the model that a stage of a finished run left."""
    run, _, stage = name.rpartition("/")
    return LocalModel(require(run, stage) / "model" if stage in STAGES and not Path(name).exists() else name)


def compare(
    models: list[str], seed: int, n: int, prompts: str, retrieving: bool, json: Path | None, plot: Path | None
) -> None:
    """Prints `skills.table` of each model and, of several, that of all with an interval over models."""
    eyes, start = open_eyes("classical", "nano"), time.monotonic()
    again = concept_top1(eyes.encoder, 50, seed, eyes.threshold, eyes.detector)["top1"]
    given = (n, seed, PromptSet(prompts), eyes, retrieving, again)
    frame = pd.concat([skills.measure(model_named(name), *given).assign(model=name) for name in models])
    tables = {name: skills.table(part) for name, part in frame.groupby("model", sort=False)}
    if len(models) > 1:
        tables[f"all {len(models)}"] = skills.table(frame, "model")
    rows = pd.concat([found.assign(model=name) for name, found in tables.items()])
    print(rows.set_index("model").round(3).to_string(na_rep=""))
    if json:
        made = dict(seed=seed, questions=n, prompts=PromptSet(prompts).label, retrieving=retrieving)
        made |= dict(seconds=round(time.monotonic() - start, 1), rows=serial.loads(rows.to_json(orient="records")))
        json.write_text(serial.dumps(made, indent=1) + "\n", encoding="utf-8")
    if plot:
        print(figures.save(figures.skills_radar(rows), plot, "skills"))
