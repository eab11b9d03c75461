"""Tables about a data set: the small CSV files that a run keeps, and the paper's Tables 5, 6 and 7.

`write_world` writes the files into a folder, `read_world` reads them back. Every figure
(`dataset_figures`) and the report use these tables and the paper's numbers in `results/paper/`.
The group `train` holds the training users; all other groups are test users, which are compared
with Persona-MME.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
from wordcloud import STOPWORDS

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import ASPECTS, Question
from personavlm_lib.benchmark.tables import dialogue_table, needed_picture, question_table
from personavlm_lib.simulation.lexicon import MARKERS
from personavlm_lib.study.profiles import PAPER_TABLES
from personavlm_lib.study.tables import WORDS
from personavlm_lib.study.templates import render

World = dict[str, pd.DataFrame]
TRAIN = "train"
PARTS = WORDS["parts"]  # by the purpose of an SFT sample or the kind of an RL prompt


def write_world(
    folder: Path, groups: dict[str, list[Life]], purposes: Iterable[str], kinds: Iterable[str]
) -> World:
    """Write the tables of a data set to `folder` and return them by name.

    `purposes` are those of the SFT samples, `kinds` those of the RL prompts.
    """
    test = [life for group, lives in groups.items() if group != TRAIN for life in lives]
    world = {
        "dialogues": dialogue_table(groups),
        "questions": question_table(test),
        "topics": topics(groups),
        "keywords": keywords(test),
        "mixture": mixture(purposes, kinds),
        "cases": cases(test),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in world.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return world


def read_world(folder: Path) -> World:
    """The tables in `folder` by name; empty if there are none."""
    return {path.stem: pd.read_csv(path, keep_default_na=False) for path in folder.glob("*.csv")}


def paper(name: str) -> pd.DataFrame:
    """A table of the paper's printed numbers, by the name of its file."""
    return pd.read_csv(PAPER_TABLES / f"{name}.csv", keep_default_na=False)


def mixture(purposes: Iterable[str], kinds: Iterable[str]) -> pd.DataFrame:
    """Training samples by stage and part (Fig. 7): stage, part, samples."""
    rows = [("SFT", PARTS.get(purpose, purpose)) for purpose in purposes]
    rows += [("RL", PARTS[kind]) for kind in kinds]
    counts = pd.DataFrame(rows, columns=["stage", "part"]).value_counts(sort=False)
    return counts.rename("samples").reset_index()


def topics(groups: dict[str, list[Life]]) -> pd.DataFrame:
    """Turns by the kind of their life event (Fig. 3c): group, kind, turns."""
    kinds = []
    for group, lives in groups.items():
        for life in lives:
            kinds += [(group, event.kind) for event in life.plan.events]
    counts = pd.DataFrame(kinds, columns=["group", "kind"]).value_counts()
    return counts.rename("turns").reset_index()


def keywords(lives: list[Life], most: int = 150) -> pd.DataFrame:
    """The words that distinguish dialogues (Fig. 12), ranked by tf-idf: word, weight.

    Names and words that only show a mood are excluded, because they occur with every topic.
    """
    excluded = STOPWORDS.union(_names(lives), *(words.values() for words in MARKERS.values()))
    counts = []
    for life in lives:
        text = " ".join(turn.user for turn in life.turns)
        words = re.findall(r"[^\W\d_]{3,}", re.sub(r"<\w+>", "", text).lower())
        counts.append(Counter(word for word in words if word not in excluded))
    dialogues_with = Counter(word for words in counts for word in words)
    rows = []
    for word, count in sum(counts, Counter()).items():
        rarity = log((len(lives) + 1) / dialogues_with[word])
        rows.append((word, round(count * rarity, 3)))
    table = pd.DataFrame(rows, columns=["word", "weight"])
    return table.sort_values(["weight", "word"], ascending=[False, True]).head(most)


def _names(lives: list[Life]) -> set[str]:
    """All words that name a person in these lives."""
    names: set[str] = set()
    for life in lives:
        for event in life.plan.events:
            own = event.value if event.kind == "name" else ""
            names.update(f"{event.who} {event.friend} {own}".lower().split())
    return names


def cases(lives: list[Life]) -> pd.DataFrame:
    """One test case per task (Fig. 9), preferably one whose evidence is a picture.

    Columns: aspect, task, question, options (one per line), answer, evidence (first gold turn),
    turns (number of gold turns), picture (PNG in base64, or empty).
    """
    rows = []
    for task, aspect in ASPECTS.items():
        candidates = [(life, q) for life in lives for q in life.questions if q.task == task]
        if candidates:
            life, question = min(candidates, key=_preference)
            rows.append(_case_row(aspect, life, question))
    columns = "aspect task question options answer evidence turns picture".split()
    return pd.DataFrame(rows, columns=columns)


def _preference(case: tuple[Life, Question]) -> tuple[bool, bool]:
    life, question = case
    return not needed_picture(life, question), not question.evidence


def _case_row(aspect: str, life: Life, question: Question) -> tuple:
    path = needed_picture(life, question)
    evidence = "not mentioned"
    for index in question.evidence:
        turn = life.turns[index]
        if not path or path in turn.images:
            evidence = f"{turn.time:%d %B}: {re.sub(r' ?<.+?>', '', turn.user)}"
            break
    picture = base64.b64encode(Path(path).read_bytes()).decode() if path else ""
    options = "\n".join(question.options)
    return (
        aspect,
        question.task,
        question.text,
        options,
        question.answer,
        evidence,
        len(question.evidence),
        picture,
    )


def cases_html(cases: pd.DataFrame) -> str:
    """The cases as an HTML table, with the correct option in bold and the picture, if any."""
    return render("cases.html.j2", cases=cases)


def table_5(questions: pd.DataFrame) -> pd.DataFrame:
    """The tasks with our number of questions and the paper's at 128k, inferred from its scores."""
    inferred = paper("counts").query("set == 'all' and context == '128k'")
    inferred = inferred.set_index("column")["n"]
    table = paper("table5")
    ours = table["task"].map(questions["task"].value_counts())
    columns = table[["aspect", "task", "definition"]]
    return columns.assign(ours=ours.fillna(0).astype(int), paper_128k=table["short"].map(inferred))


def table_6(dialogues: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """The paper's statistics (Table 6, and the sizes in its text), ours, and the difference."""
    choice = questions[questions["kind"] == "choice"]
    in_training = dialogues["group"] == TRAIN
    train = dialogues[in_training]
    test = dialogues[~in_training]
    measures = choice[["question_words", "answer_words", "needs_picture"]].mean().to_dict()
    measures["turns"] = test["turns"].mean()
    measures["pictured"] = test["pictured"].sum() / test["turns"].sum()
    measures["cases"] = len(choice)
    measures["pairs"] = sum(questions["kind"] == "binary") // 2
    measures["users"] = len(test)
    measures["train_users"] = len(train)
    measures["train_turns"] = train["turns"].sum()
    table = paper("table6")
    scale = np.where(table["statistic"].str.endswith("%)"), 100, 1)
    ours = (table.pop("measure").map(measures) * scale).round(2)
    theirs = table["paper"].str.strip(">").astype(float)
    return table.assign(ours=ours, difference=(ours - theirs).round(2))


def table_7(dialogues: pd.DataFrame, questions: pd.DataFrame) -> pd.DataFrame:
    """The paper's comparison of benchmarks, with ours added.

    Modality: V(ision), T(ext). Capabilities: U(nderstanding), M(emory), A(lignment). Answers:
    MC (multiple choice), BC (binary choice).
    """
    present = {*questions["aspect"], *questions["kind"]}
    capabilities = _signs({"U": "Preference", "M": "Memory", "A": "Alignment"}, present)
    answers = _signs({"MC": "choice", "BC": "binary"}, present)
    modality = "V + T" if dialogues["pictured"].any() else "T"
    long_term = "yes" if (dialogues["sessions"] > 1).all() else "no"
    table = paper("table7")
    table.loc[len(table)] = ["our data", "ours", modality, long_term, capabilities, answers]
    return table


def _signs(meanings: dict[str, str], present: set[str]) -> str:
    return " + ".join(sign for sign, meaning in meanings.items() if meaning in present)


def tables(world: World) -> dict[str, pd.DataFrame]:
    """Tables 5, 6 and 7 of a data set by name; empty if there are no tables."""
    if not world:
        return {}
    dialogues = world["dialogues"]
    questions = world["questions"]
    return {
        "Table 5": table_5(questions),
        "Table 6": table_6(dialogues, questions),
        "Table 7": table_7(dialogues, questions),
    }
