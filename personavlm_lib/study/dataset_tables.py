"""What a world is made of, as tables: from lives and samples to the small files that a run keeps, and Tables 5, 6, 7.

`write_world` leaves the files in a folder and `read_world` reads them back; all else that is drawn or said of the world
(`world_figures`, the report) is a pure function of these and of the paper's numbers in `results/paper/`.
The group `train` is what is trained on; every other group is the test, which is compared with Persona-MME.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Template
from wordcloud import STOPWORDS

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.mixtures import MEMORY_PURPOSES
from personavlm_lib.benchmark.questions import ASPECTS
from personavlm_lib.benchmark.tables import dialogue_table, needed_picture, question_table
from personavlm_lib.simulation.lexicon import MARKERS
from personavlm_lib.study.profiles import PAPER_TABLES

World = dict[str, pd.DataFrame]
TRAIN = "train"
PARTS = {"respond": "question answering", **dict.fromkeys(MEMORY_PURPOSES, "four memory types")}
PARTS |= {"open": "open-ended", "choice": "multiple choice", "binary": "yes or no"}


def write_world(
    folder: Path, groups: dict[str, list[Life]], purposes: Iterable[str], kinds: Iterable[str]
) -> World:
    """The tables of a world, written to `folder` and returned by name.

    `purposes` are those of the SFT samples, `kinds` those of the questions that reinforcement learning is prompted by.
    """
    test = [life for group, lives in groups.items() if group != TRAIN for life in lives]
    samples = [("SFT", PARTS.get(p, p)) for p in purposes] + [("RL", PARTS[k]) for k in kinds]
    mixture = (
        pd.DataFrame(samples, columns=["stage", "part"])
        .value_counts(sort=False)
        .rename("samples")
        .reset_index()
    )
    world = {
        "dialogues": dialogue_table(groups),
        "questions": question_table(test),
        "topics": topics(groups),
    }
    world |= {"keywords": keywords(test), "mixture": mixture, "cases": cases(test)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in world.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return world


def read_world(folder: Path) -> World:
    """The tables that `write_world` left in `folder`, by name; none if it left none."""
    return {path.stem: pd.read_csv(path, keep_default_na=False) for path in folder.glob("*.csv")}


def paper(name: str) -> pd.DataFrame:
    """A table of the paper's printed numbers, by the name of its file."""
    return pd.read_csv(PAPER_TABLES / f"{name}.csv", keep_default_na=False)


def topics(groups: dict[str, list[Life]]) -> pd.DataFrame:
    """Turns by what they are about (Fig. 3c): group, kind of the plan's beat, turns."""
    kinds = [
        (group, event.kind)
        for group, lives in groups.items()
        for life in lives
        for event in life.plan.events
    ]
    return (
        pd.DataFrame(kinds, columns=["group", "kind"]).value_counts().rename("turns").reset_index()
    )


def keywords(lives: list[Life], most: int = 150) -> pd.DataFrame:
    """The words that tell dialogues apart (Fig. 12): word, weight = times said * log of how few dialogues say it.

    Names, and words that only show a mood, are left out: they stand in every turn, whatever it is about.
    """
    events = [event for life in lives for event in life.plan.events]
    names = [
        f"{b.who} {b.friend} {b.value if b.kind == 'name' else ''}".lower().split() for b in events
    ]
    silent = STOPWORDS.union(*names, *(words.values() for words in MARKERS.values()))
    texts = [
        re.sub(r"<\w+>", "", " ".join(turn.user for turn in life.turns)).lower() for life in lives
    ]
    said = [
        Counter(word for word in re.findall(r"[^\W\d_]{3,}", text) if word not in silent)
        for text in texts
    ]
    tellers = Counter(word for words in said for word in words)
    rows = [
        (w, round(n * log((len(lives) + 1) / tellers[w]), 3))
        for w, n in sum(said, Counter()).items()
    ]
    table = pd.DataFrame(rows, columns=["word", "weight"])
    return table.sort_values(["weight", "word"], ascending=[False, True]).head(most)


def cases(lives: list[Life]) -> pd.DataFrame:
    """One case of each task (Fig. 9), rather one whose evidence is a picture: aspect, task, question, options (one a
    line), answer, evidence (the first gold turn), turns (gold ones), picture (PNG in base64)."""
    rows = []
    for task, aspect in ASPECTS.items():
        fitting = [(life, q) for life in lives for q in life.questions if q.task == task]
        for life, q in sorted(
            fitting, key=lambda pair: (not needed_picture(*pair), not pair[1].evidence)
        )[:1]:
            path = needed_picture(life, q)
            turn = next(
                (life.turns[i] for i in q.evidence if path in ("", *life.turns[i].images)), None
            )
            said = (
                f"{turn.time:%d %B}: {re.sub(r' ?<.+?>', '', turn.user)}"
                if turn
                else "nothing was said of it"
            )
            picture = base64.b64encode(Path(path).read_bytes()).decode() if path else ""
            rows.append(
                (
                    aspect,
                    task,
                    q.text,
                    "\n".join(q.options),
                    q.answer,
                    said,
                    len(q.evidence),
                    picture,
                )
            )
    return pd.DataFrame(
        rows, columns="aspect task question options answer evidence turns picture".split()
    )


def cases_html(cases: pd.DataFrame) -> str:
    """The cases as an HTML table, the right option in bold and the picture where the evidence is one."""
    return Template(Path(__file__).with_name("cases.html.j2").read_text(), autoescape=True).render(
        cases=cases
    )


def table_5(asked: pd.DataFrame) -> pd.DataFrame:
    """The tasks in our words, with our number of questions and, at 128k, the paper's (which its scores give away)."""
    theirs = paper("counts").query("set == 'all' and context == '128k'").set_index("column")["n"]
    table, ours = paper("table5"), asked["task"].value_counts()
    counts = {
        "ours": table["task"].map(ours).fillna(0).astype(int),
        "paper_128k": table["short"].map(theirs),
    }
    return table[["aspect", "task", "definition"]].assign(**counts)


def table_6(dialogues: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    """The paper's statistics (Table 6, and what its text says of size), ours, and the difference."""
    choice, training = asked[asked["kind"] == "choice"], dialogues["group"] == TRAIN
    train, test = dialogues[training], dialogues[~training]
    ours = choice[["question_words", "answer_words", "needs_picture"]].mean().to_dict()
    ours |= {
        "turns": test["turns"].mean(),
        "pictured": test["pictured"].sum() / test["turns"].sum(),
    }
    ours |= {"cases": len(choice), "pairs": sum(asked["kind"] == "binary") // 2, "users": len(test)}
    ours |= {"train_users": len(train), "train_turns": train["turns"].sum()}
    table = paper("table6")
    ours = (
        table.pop("measure").map(ours) * np.where(table["statistic"].str.endswith("%)"), 100, 1)
    ).round(2)
    return table.assign(
        ours=ours, difference=(ours - table["paper"].str.strip(">").astype(float)).round(2)
    )


def table_7(dialogues: pd.DataFrame, asked: pd.DataFrame) -> pd.DataFrame:
    """The paper's comparison of benchmarks, and ours as its data say. Modality: V(ision), T(ext). Capabilities:
    U(nderstanding), M(emory), A(lignment). Answers: MC (multiple choice), BC (binary choice)."""
    asks, table = {*asked["aspect"], *asked["kind"]}, paper("table7")
    signs = {"U": "Preference", "M": "Memory", "A": "Alignment"}, {"MC": "choice", "BC": "binary"}
    able, answers = (" + ".join(sign for sign, what in of.items() if what in asks) for of in signs)
    modality = "V + T" if dialogues["pictured"].any() else "T"
    long_term = "yes" if (dialogues["sessions"] > 1).all() else "no"
    table.loc[len(table)] = ["our data", "ours", modality, long_term, able, answers]
    return table


def tables(world: World) -> dict[str, pd.DataFrame]:
    """Tables 5, 6 and 7 of a world, by name; none where there are no tables."""
    shown = [world[name] for name in ("dialogues", "questions") if world]
    return (
        {"Table 5": table_5(shown[1]), "Table 6": table_6(*shown), "Table 7": table_7(*shown)}
        if world
        else {}
    )
