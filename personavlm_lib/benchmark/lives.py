"""Lives, gold memories and training samples, on disk (paper, sections 3.2 and 4, appendix B.2 and C).

Gold memory is what the agent's own update stage leaves behind when the oracle speaks; SFT samples are recordings of it.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.benchmark.questions import Hop, Question
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.memory.records import Turn
from personavlm_lib.simulation.dialogue import render_dialogue
from personavlm_lib.simulation.plan import LifePlan, sample_plan


@dataclass(frozen=True)
class Life:
    """One simulated user: the dialogue as told, the questions about it, and the plan behind both."""

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
    """A life with `questions` questions and `alignment` pairs of alignment items; pictures go to `images`."""
    plan = sample_plan(seed, days, size)
    return Life(
        plan,
        tuple(render_dialogue(plan, images)),
        tuple(make_questions(plan, questions, alignment)),
    )


def paraphrased_life(life: Life, images: Path) -> Life:
    """The same life and questions, told in varied wording."""
    return replace(life, turns=tuple(render_dialogue(life.plan, images, wording="paraphrased")))


def write_lives(path: Path, lives: Iterable[Life]) -> None:
    """JSON Lines: what the plan is sampled from, turns and questions; image paths relative to the file's folder."""
    with open(path, "w") as file:
        for life in lives:
            turns = [
                replace(t, images=tuple(str(Path(i).relative_to(path.parent)) for i in t.images))
                for t in life.turns
            ]
            row = {"user": life.user, "plan": life.plan.arguments}
            row |= {
                "turns": [asdict(t) for t in turns],
                "questions": [asdict(q) for q in life.questions],
            }
            file.write(json.dumps(row, default=datetime.isoformat) + "\n")


def read_lives(path: Path) -> list[Life]:
    """The lives of a file that `write_lives` wrote."""
    return [_life(json.loads(line), path.parent) for line in path.read_text().splitlines()]


def _life(row: dict, folder: Path) -> Life:
    def moment(text: str | None) -> datetime | None:
        return text and datetime.fromisoformat(text)

    turns = [
        Turn(
            moment(t["time"]),
            t["user"],
            t["assistant"],
            tuple(str(folder / i) for i in t["images"]),
            t["index"],
        )
        for t in row["turns"]
    ]
    questions = []
    for q in row["questions"]:
        hops = tuple(
            Hop(**h | {"start": moment(h["start"]), "end": moment(h["end"])}) for h in q["hops"]
        )
        fields = q | {"time": moment(q["time"]), "hops": hops, "options": tuple(q["options"])}
        questions.append(
            Question(**fields | {"evidence": tuple(q["evidence"]), "history": tuple(q["history"])})
        )
    return Life(sample_plan(**row["plan"]), tuple(turns), tuple(questions))


def as_query(question: Question) -> Turn:
    """The question as the user's next message."""
    return Turn(question.time, question.query)
