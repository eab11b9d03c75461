"""Check whether a benchmark can be answered from surface cues alone.

Four baselines read neither the conversation nor a memory:

- `longest` and `shortest` choose the option with the most or the fewest characters.
- `most_frequent` chooses the option that is most often right in the other items of the task.
- `surface` chooses the most probable option of a logistic regression on length, position, overlap
  with the question and rarity.

The two baselines that learn are never trained on items of the user that they are tested on.
Options that a baseline cannot tell apart share its choice, so that no baseline profits from the
order of the options. Alignment is audited in pairs: the baseline chooses which of two replies suits
the user. A pair of yes-or-no items asks the same, but its answers are balanced by construction.
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
    "or the authors' format "
    "[{data_path, question_type, query, choices: {(a): words}, answer: (a), alignment}]"
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
    """Read the items of a benchmark file, in our format or the authors'.

    Raises ValueError with a one-line message for any other file.
    """
    text = Path(path).read_text(encoding="utf-8")
    items: list[ShortcutItem] = []
    try:
        if text.lstrip().startswith("["):
            for case in json.loads(text):
                items.extend(_author_items(case))
        else:
            for line in text.splitlines():
                if line.strip():
                    items.extend(_life_items(json.loads(line)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not a benchmark file ({reason}): {EXPECTED}") from None
    if not items:
        raise ValueError(f"{path} contains no questions: {EXPECTED}")
    return items


def _life_items(life: dict) -> Iterator[ShortcutItem]:
    """The items of one of our lives."""
    user = life["user"]
    pair: list[dict] = []
    for question in life["questions"]:
        task = question["task"]
        answer = question["answer"]
        if question["kind"] == "choice":
            options = tuple(question["options"])
            yield ShortcutItem(task, user, question["text"], options, options.index(answer))
        elif question["kind"] == "binary":
            pair.append(question)
            if len(pair) == 2:  # the two items of a pair follow each other
                texts = {item["answer"]: item["text"] for item in pair}
                yield _pair_item(task, user, "", texts["yes"], texts["no"])
                pair = []


def _author_items(case: dict) -> Iterator[ShortcutItem]:
    """The items of one case in the authors' format."""
    choices = case["choices"]
    user = str(Path(case["data_path"]).parent)
    query = case["query"]
    right = list(choices).index(case["answer"])
    yield ShortcutItem(case["question_type"], user, query, tuple(choices.values()), right)
    alignment = case.get("alignment")
    if alignment:
        yield _pair_item(ALIGNMENT, user, query, alignment["chosen"], alignment["rejected"])


def _pair_item(task: str, user: str, text: str, chosen: str, rejected: str) -> ShortcutItem:
    """An alignment pair in random order: in a file, the right reply may always come first."""
    rng = random.Random(f"{user} {sorted((chosen, rejected))}")
    right = rng.randrange(2)
    options = (chosen, rejected) if right == 0 else (rejected, chosen)
    return ShortcutItem(task, user, text, options, right)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _normalized(option: str) -> str:
    return " ".join(_words(option))


def _picks(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Choose the highest score; equal ones share the choice. Returns (options,) with sum 1."""
    rounded = np.round(np.asarray(scores, float), 9)
    best = rounded == rounded.max()
    return best / best.sum()


def _length_picks(item: ShortcutItem, sign: int) -> np.ndarray:
    """Choose the longest option (`sign` 1) or the shortest (`sign` -1)."""
    return _picks([sign * len(option) for option in item.options])


def _features(items: list[ShortcutItem]) -> list[np.ndarray]:
    """Features of every item's options: (options, features) each.

    Columns: length, length minus the item's mean, is longest, is shortest, overlap with the
    question, mean log frequency of the words, position (one-hot).
    """
    frequency: Counter[str] = Counter()
    for item in items:
        for option in item.options:
            frequency.update(set(_words(option)))
    width = max(len(item.options) for item in items)
    return [_item_features(item, frequency, width) for item in items]


def _item_features(item: ShortcutItem, frequency: Counter[str], width: int) -> np.ndarray:
    question_words = set(_words(item.text))
    overlap = []
    rarity = []
    for option in item.options:
        words = _words(option) or [""]
        overlap.append(np.mean([word in question_words for word in words]))
        rarity.append(np.mean([np.log1p(frequency[word]) for word in words]))
    length = np.array([len(option) for option in item.options], float)
    centered = length - length.mean()
    longest = length == length.max()
    shortest = length == length.min()
    position = np.eye(width)[: len(item.options)]
    return np.column_stack([length, centered, longest, shortest, overlap, rarity, position])


def _learned_picks(
    items: list[ShortcutItem], folds: int, seed: int = 0
) -> dict[str, list[np.ndarray]]:
    """Choices of the two baselines that learn, by cross-validation over users."""
    guesses = [_picks([0.0] * len(item.options)) for item in items]
    most_frequent = list(guesses)
    surface = list(guesses)
    users = [item.user for item in items]
    n_users = len(set(users))
    if n_users >= 2:  # with one user there is nothing to learn from: both baselines guess
        features = _features(items)
        folding = GroupKFold(min(folds, n_users), shuffle=True, random_state=seed)
        for train, test in folding.split(users, groups=users):
            right_options = Counter(_normalized(items[i].options[items[i].right]) for i in train)
            for i in test:
                counts = [right_options[_normalized(option)] for option in items[i].options]
                most_frequent[i] = _picks(counts)
            for i, pick in zip(test, _surface_picks(items, features, train, test), strict=True):
                surface[i] = pick
    return {"most_frequent": most_frequent, "surface": surface}


def _surface_picks(
    items: list[ShortcutItem], features: list[np.ndarray], train: np.ndarray, test: np.ndarray
) -> list[np.ndarray]:
    """Fit a logistic regression to the training items, and choose on the test items."""
    labels = []
    for i in train:
        item = items[i]
        labels.append(np.arange(len(item.options)) == item.right)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(np.concatenate([features[i] for i in train]), np.concatenate(labels))
    test_features = np.concatenate([features[i] for i in test])
    probabilities = model.predict_proba(test_features)[:, 1]
    ends = np.cumsum([len(items[i].options) for i in test])
    return [_picks(part) for part in np.split(probabilities, ends[:-1])]


def shortcut_table(items: list[ShortcutItem], folds: int = 5) -> pd.DataFrame:
    """Accuracy of every baseline on every task.

    Columns: task, baseline, n, chance, accuracy, low, high. Users are resampled; with one user,
    `low` and `high` are nan.
    """
    rows = []
    for task in dict.fromkeys(item.task for item in items):
        task_items = [item for item in items if item.task == task]
        picks = _learned_picks(task_items, folds)
        picks["longest"] = [_length_picks(item, 1) for item in task_items]
        picks["shortest"] = [_length_picks(item, -1) for item in task_items]
        for name in BASELINES:
            for item, pick in zip(task_items, picks[name], strict=True):
                chance = 1 / len(item.options)
                rows.append((task, name, item.user, chance, pick[item.right]))
    frame = pd.DataFrame(rows, columns=["task", "baseline", "user", "chance", "correct"])
    groups = ["task", "baseline"]
    table = accuracy_table(frame, by=groups).drop(columns="unscored")
    chances = frame.groupby(groups, as_index=False)["chance"].mean()
    table = table.merge(chances, on=groups, how="left")
    return table[["task", "baseline", "n", "chance", "accuracy", "low", "high"]]


def measure_shortcuts(path: str | Path) -> dict:
    """Compute `shortcut_table` for a file.

    Returns {file, questions, users, tasks: {task: {n, chance, baselines: {name: numbers}}}}. The
    numbers are accuracy, low and high, with None for nan.
    """
    items = read_items(path)
    table = shortcut_table(items).astype(object).replace({np.nan: None})
    tasks: dict[str, dict] = {}
    for row in table.itertuples():
        if row.task not in tasks:
            tasks[row.task] = {"n": row.n, "chance": row.chance, "baselines": {}}
        numbers = {"accuracy": row.accuracy, "low": row.low, "high": row.high}
        tasks[row.task]["baselines"][row.baseline] = numbers
    users = {item.user for item in items}
    name = Path(path).name
    return {"file": name, "questions": len(items), "users": len(users), "tasks": tasks}


def report_shortcuts(file: Path, out: Path | None = None) -> None:
    """Print accuracy and interval of every baseline by task, and write the numbers to `out`."""
    result = measure_shortcuts(file)
    for task, numbers in result["tasks"].items():
        print(f"{task}: n = {numbers['n']}, chance {numbers['chance']:.3f}")
        table = pd.DataFrame(numbers["baselines"]).T.astype(float)
        print(table.round(3).to_string(header=False))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
