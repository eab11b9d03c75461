"""Can a benchmark be answered by its surface alone? Four baselines that read neither the conversation nor a memory.

`longest` and `shortest` take the option with the most or the fewest letters, `most_frequent` the one whose words are
most often right in the task's other items, `surface` the most probable one by a logistic regression on length,
position, overlap with the question and rarity. The two that learn never see an item, nor another one of its user.
Options that a baseline cannot tell apart share its choice, so that none profits from the order. Alignment is audited
by pairs: which of two replies suits the user; that is what a pair of yes-or-no items asks, without their even answers.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from personavlm_lib.evaluation.statistics import accuracy_table

BASELINES = ("longest", "shortest", "most_frequent", "surface")
ALIGNMENT = "Personality Alignment"
EXPECTED = (
    "expected lives as JSON Lines of {user, questions: [{task, kind, text, options, answer}]} "
    "or the authors' [{data_path, question_type, query, choices: {(a): words}, answer: (a), alignment}]"
)


@dataclass(frozen=True)
class ShortcutItem:
    """One question as a baseline sees it; `right` is the index of the right option."""

    task: str
    user: str
    text: str
    options: tuple[str, ...]
    right: int


def read_items(path: str | Path) -> list[ShortcutItem]:
    """The items of a benchmark file of either shape. ValueError in one line for any other."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            items = [item for case in json.loads(text) for item in _theirs(case)]
        else:
            items = [
                item
                for line in filter(str.strip, text.splitlines())
                for item in _ours(json.loads(line))
            ]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path} is no benchmark file that is known ({what}): {EXPECTED}"
        ) from None
    if not items:
        raise ValueError(f"{path} holds no question: {EXPECTED}")
    return items


def _ours(life: dict) -> Iterator[ShortcutItem]:
    user, pair = life["user"], []
    for question in life["questions"]:
        if question["kind"] == "choice":
            options = tuple(question["options"])
            yield ShortcutItem(
                question["task"], user, question["text"], options, options.index(question["answer"])
            )
        elif question["kind"] == "binary":
            pair = [*pair, question]
            if len(pair) == 2:  # the two items of a pair follow each other
                (yes,), (no,) = (
                    [q["text"] for q in pair if q["answer"] == answer] for answer in ("yes", "no")
                )
                yield _pair(question["task"], user, "", yes, no)
                pair = []


def _theirs(case: dict) -> Iterator[ShortcutItem]:
    letters, options = zip(*case["choices"].items(), strict=True)
    user = str(Path(case["data_path"]).parent)
    yield ShortcutItem(
        case["question_type"], user, case["query"], options, letters.index(case["answer"])
    )
    if case.get("alignment"):
        yield _pair(
            ALIGNMENT,
            user,
            case["query"],
            case["alignment"]["chosen"],
            case["alignment"]["rejected"],
        )


def _pair(task: str, user: str, text: str, chosen: str, rejected: str) -> ShortcutItem:
    options = (chosen, rejected)
    right = random.Random(f"{user} {sorted(options)}").randrange(
        2
    )  # in the file the right one may always be first
    return ShortcutItem(task, user, text, options if right == 0 else options[::-1], right)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _picks(scores: Sequence[float]) -> np.ndarray:
    """The choice of the highest score, shared among equals: (options,), sum 1."""
    scores = np.round(np.asarray(scores, float), 9)
    best = scores == scores.max()
    return best / best.sum()


def _features(items: list[ShortcutItem]) -> list[np.ndarray]:
    """For each item (options, features): length, by itself and against the others', overlap, rarity, position."""
    offered = Counter(
        word for item in items for option in item.options for word in set(_words(option))
    )
    width = max(len(item.options) for item in items)
    rows = []
    for item in items:
        asked, words = set(_words(item.text)), [_words(option) or [""] for option in item.options]
        length = np.array([len(option) for option in item.options], float)
        overlap = [np.mean([word in asked for word in option]) for option in words]
        rarity = [np.mean([np.log1p(offered[word]) for word in option]) for option in words]
        of_all = length - length.mean(), length == length.max(), length == length.min()
        rows.append(
            np.column_stack([length, *of_all, overlap, rarity, np.eye(width)[: len(words)]])
        )
    return rows


def _learned(items: list[ShortcutItem], folds: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Picks of the two baselines that learn from the items of other users than the item's own."""
    users, features = [item.user for item in items], _features(items)
    picks = {
        name: [np.full(len(i.options), 1 / len(i.options)) for i in items] for name in BASELINES[2:]
    }
    if len(set(users)) < 2:  # nothing to learn from: both guess
        return picks
    split = GroupKFold(min(folds, len(set(users))), shuffle=True, random_state=seed)
    for train, test in split.split(users, groups=users):
        rights = Counter(" ".join(_words(items[i].options[items[i].right])) for i in train)
        labels = np.concatenate([np.arange(len(items[i].options)) == items[i].right for i in train])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(np.concatenate([features[i] for i in train]), labels)
        chances = model.predict_proba(np.concatenate([features[i] for i in test]))[:, 1]
        ends = np.cumsum([len(items[i].options) for i in test])
        for i, likely in zip(test, np.split(chances, ends[:-1]), strict=True):
            picks["most_frequent"][i] = _picks(
                [rights[" ".join(_words(option))] for option in items[i].options]
            )
            picks["surface"][i] = _picks(likely)
    return picks


def shortcut_table(items: list[ShortcutItem], folds: int = 5) -> pd.DataFrame:
    """Per task and baseline: task, baseline, n, chance, accuracy, low, high (users resampled; of one user nan)."""
    rows = []
    for task in dict.fromkeys(item.task for item in items):
        own = [item for item in items if item.task == task]
        lengths = [[len(option) for option in item.options] for item in own]
        picks = {
            "longest": [_picks(n) for n in lengths],
            "shortest": [_picks(-np.array(n)) for n in lengths],
        }
        picks |= _learned(own, folds)
        for name in BASELINES:
            for item, pick in zip(own, picks[name], strict=True):
                rows.append((task, name, item.user, 1 / len(item.options), pick[item.right]))
    frame = pd.DataFrame(rows, columns=["task", "baseline", "user", "chance", "correct"])
    table = accuracy_table(frame, by=["task", "baseline"])
    chance = frame.groupby(["task", "baseline"])["chance"].mean()
    table.insert(
        3, "chance", [chance[key] for key in zip(table["task"], table["baseline"], strict=True)]
    )
    return table


def measure_shortcuts(path: str | Path) -> dict:
    """`leak_table` of a file as {file, questions, users, tasks: {task: {n, chance, baselines: {name: numbers}}}}."""
    items = read_items(path)
    tasks: dict[str, dict] = {}
    for row in shortcut_table(items).astype(object).replace({np.nan: None}).to_dict("records"):
        task = tasks.setdefault(
            row["task"], {"n": row["n"], "chance": row["chance"], "baselines": {}}
        )
        task["baselines"][row["baseline"]] = {
            field: row[field] for field in ("accuracy", "low", "high")
        }
    return dict(
        file=Path(path).name,
        questions=len(items),
        users=len({item.user for item in items}),
        tasks=tasks,
    )


def report_shortcuts(file: Path, out: Path | None = None) -> None:
    """Prints accuracy and interval of each surface baseline by task, and writes the numbers to `out`."""
    result = measure_shortcuts(file)
    for task, found in result["tasks"].items():
        print(f"{task}: n = {found['n']}, chance {found['chance']:.3f}")
        print(pd.DataFrame(found["baselines"]).T.astype(float).round(3).to_string(header=False))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
