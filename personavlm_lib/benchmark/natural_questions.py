"""Questions about a life of the wide pool in the user's own voice (Fig. 9).

The makers in `tasks.py` decide what is asked, when, and with which options. The frames are those of
the natural wording (`simulation/wide/*.txt`).
"""

import random
from dataclasses import replace
from pathlib import Path

import yaml

from personavlm_lib.agent.prompt_sets import periods
from personavlm_lib.benchmark.questions import Question
from personavlm_lib.simulation.natural import FrameDecks, frame_slots
from personavlm_lib.simulation.plan import LifeEvent, LifePlan

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SECTIONS: dict[str, str] = _TABLES["tasks"]
PICTURES: dict[str, str] = _TABLES["pictures"]


def phrase_questions(plan: LifePlan, questions: list[Question]) -> list[Question]:
    """The same questions in the user's voice; two items of an alignment pair share a message."""
    decks = FrameDecks(random.Random(f"phrases {plan.seed}"))
    phrased = []
    pair = ""  # the frame of an alignment pair, between its two items
    for question in questions:
        if question.kind == "binary":
            frame = pair or decks.draw(f"alignment.{_trait(question)}")
            text = _alignment_text(question, frame)
            pair = "" if pair else frame
        else:
            frame = decks.draw(_section(plan, question))
            text = frame.format(**_slots(plan, question))
        phrased.append(replace(question, text=text))
    return phrased


def _asked_about(plan: LifePlan, question: Question) -> LifeEvent:
    """The event with the answer; for a goal that was never mentioned, one with its name."""
    if question.evidence:
        return plan.events[question.evidence[-1]]
    return LifeEvent(question.time, "goal", value=question.hops[0].keywords.split("goal ")[1])


def _section(plan: LifePlan, question: Question) -> str:
    event = _asked_about(plan, question)
    if question.task == "Visual Detail Recall":
        return next(PICTURES[start] for start in PICTURES if question.text.startswith(start))
    if event.kind == "core" and question.task != "Interest Evolution Analysis":
        return f"{event.key}.question"
    if question.task == "Latest Preference Recognition":
        return f"{event.key}.question.latest"
    if question.task in SECTIONS:
        return SECTIONS[question.task].format(key=event.key)
    if event.kind == "friend":
        return f"{event.key}.question.{'hop' if len(question.hops) > 1 else 'friend'}"
    return f"{event.key}.question.{'what' if question.hops[0].start else 'who'}"


def _slots(plan: LifePlan, question: Question) -> dict[str, str]:
    """The slots of the event, with the named period or the outing of a question that has one."""
    slots = frame_slots(_asked_about(plan, question))
    hop = question.hops[0] if question.hops else None
    if hop and hop.start:
        named = periods(question.time)
        slots["period"] = next(name for name in named if named[name] == (hop.start, hop.end))
    if len(question.evidence) > 1:
        outing = plan.events[question.evidence[0]]
        slots["outing"] = f"{outing.key} {outing.value}"
    return slots


def _trait(question: Question) -> str:
    return question.thought.split()[1]  # my extraversion high takes sociable asked reserved


def _alignment_text(question: Question, frame: str) -> str:
    """The user's message and the reply for the pole whose style the canonical question names."""
    _, _, level, _, suitable, _, asked = question.thought.split()
    message, high, low = frame.split(" || ")
    asked_pole_is_high = (asked == suitable) == (level == "high")
    reply = high if asked_pole_is_high else low
    return f'I wrote: "{message}" Someone replied: "{reply}" Does this reply suit me?'
