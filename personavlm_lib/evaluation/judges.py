"""The judge: is an answer right, does the reasoning bear it out, was the grammar kept (paper, Eq. 3)?

Records take the first, the reward of the RL stage all three. The paper asks Qwen3-30B-A3B for f_acc and f_cons; here
answers are words of a known world, so rules decide.
"""

import re

from personavlm_lib.agent.respond import Response
from personavlm_lib.benchmark.questions import Question


def accuracy(question: Question, answer: str | None) -> float:
    """f_acc: 1 if the answer is the right option (its letter or its words), or holds the right words; else 0."""
    if answer is None:
        return 0.0
    if question.options:
        chosen = question.matching_option(answer)
        return float(chosen is not None and question.options[chosen] == question.answer)
    return float(_words(answer) == _words(question.answer))


def consistency(question: Question, response: Response) -> float:
    """f_cons: 1 if the last reasoning step holds what the answer says; of yes and no: if the two styles it ends with
    agree as the answer says."""
    thought = _words(response.steps[-1].think or "") if response.steps else []
    if response.answer is None:
        return 0.0
    if question.kind == "binary":
        suits = (
            thought[-3] == thought[-1] if thought[-2:-1] == ["asked"] and len(thought) > 2 else None
        )
        return float(suits == ("yes" in _words(response.answer)))
    answer = response.answer
    chosen = question.matching_option(answer) if question.options else None
    said = _words(question.options[chosen] if chosen is not None else answer)
    return float(bool(said) and all(word in thought for word in said))


def grammar(response: Response) -> float:
    """f_format: 1 if every generation kept the output grammar and the trajectory came to an answer."""
    return float(not response.unfinished and not any(step.errors for step in response.steps))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
