"""Simulated lives with their questions, in memory and as JSON Lines (paper, sections 3.2 and 4)."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter

from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.memory.records import Turn, to_json
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifePlan, sample_plan

_QUESTIONS = TypeAdapter(tuple[Question, ...])  # reads times and tuples from JSON values


@dataclass(frozen=True)
class Life:
    """One simulated user: the plan, the dialogue rendered from it, and questions about it."""

    plan: LifePlan
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]

    @property
    def user(self) -> str:
        return self.plan.user

    @property
    def oracle(self) -> Oracle:
        return Oracle(self.plan, list(self.turns), self.questions)


def simulate_life(
    seed: int, images: Path, days: int, size: float, questions: int, alignment: int
) -> Life:
    """Simulate a life with `questions` choice questions and `alignment` pairs of alignment items.

    An alignment item asks whether a reply style suits the user. Writes the pictures into the folder
    `images`.
    """
    plan = sample_plan(seed, days, size)
    turns = tuple(render_dialogue(plan, images))
    return Life(plan, turns, tuple(make_questions(plan, questions, alignment)))


def paraphrased_life(life: Life, images: Path) -> Life:
    """The same life and questions in paraphrased wording; writes the pictures into `images`."""
    turns = render_dialogue(life.plan, images, wording="paraphrased")
    return replace(life, turns=tuple(turns))


def write_lives(path: Path, lives: Iterable[Life]) -> None:
    """Write one life per line: the plan's arguments, turns and questions.

    Image paths are relative to the file's folder.
    """
    folder = path.parent
    with open(path, "w", encoding="utf-8") as file:
        for life in lives:
            turns = []
            for turn in life.turns:
                images = tuple(str(Path(image).relative_to(folder)) for image in turn.images)
                turns.append(json.loads(to_json(replace(turn, images=images))))
            row = {
                "user": life.user,
                "plan": life.plan.arguments,
                "turns": turns,
                "questions": [asdict(question) for question in life.questions],
            }
            file.write(json.dumps(row, default=datetime.isoformat) + "\n")


def read_lives(path: Path) -> list[Life]:
    """Read the lives of a file written by `write_lives`."""
    return [
        _parse_life(json.loads(line), path.parent)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def _parse_life(row: dict, folder: Path) -> Life:
    plan = sample_plan(**row["plan"])
    turns = [_parse_turn(fields, folder) for fields in row["turns"]]
    return Life(plan, tuple(turns), _QUESTIONS.validate_python(row["questions"]))


def _parse_turn(fields: dict, folder: Path) -> Turn:
    images = tuple(str(folder / image) for image in fields["images"])
    time = datetime.fromisoformat(fields["time"])
    return Turn(time, fields["user"], fields["assistant"], images, fields["index"])


def as_query(question: Question) -> Turn:
    """The question as the user's next message."""
    return Turn(question.time, question.query)
