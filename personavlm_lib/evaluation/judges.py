"""The three terms of the reward (paper, Eq. 3): is the answer right, consistent and well formed?

Records use accuracy only; the reward of the RL stage uses all three. The paper asks Qwen3-30B-A3B
for f_acc and f_cons. Here the answers are words of the simulated world, so rules decide.
"""

import re

from personavlm_lib.agent.respond import Response
from personavlm_lib.benchmark.questions import Question


def accuracy(question: Question, answer: str | None) -> float:
    """f_acc: 1 if the answer names the right option, or has the right words; else 0.

    An option is named by its letter or by its words.
    """
    if answer is None:
        return 0.0
    if question.options:
        option = _named_option(question, answer)
        return float(option == question.answer)
    return float(_words(answer) == _words(question.answer))


def consistency(question: Question, response: Response) -> float:
    """f_cons: 1 if the last reasoning step supports the answer; else 0.

    The step must contain the words of the answer. On a yes-or-no question, the two styles at the
    end of the step must be equal if the answer is yes, and differ if it is no.
    """
    answer = response.answer
    if answer is None:
        return 0.0
    thought: list[str] = []
    if response.steps:
        thought = _words(response.steps[-1].think or "")
    if question.kind == "binary":
        # The oracle's thought ends with "takes STYLE asked STYLE": the suitable and the asked one.
        if len(thought) < 3 or thought[-2] != "asked":
            return 0.0
        styles_match = thought[-3] == thought[-1]
        says_yes = "yes" in _words(answer)
        return float(styles_match == says_yes)
    option = _named_option(question, answer)
    words = _words(answer if option is None else option)
    if not words:
        return 0.0
    return float(all(word in thought for word in words))


def grammar(response: Response) -> float:
    """f_format: 1 if every generation follows the grammar and the trajectory ends in an answer."""
    if response.unfinished:
        return 0.0
    return float(not any(step.errors for step in response.steps))


def _named_option(question: Question, answer: str) -> str | None:
    """The option that the answer names; None if it names none or the question has no options."""
    if not question.options:
        return None
    index = question.matching_option(answer)
    return None if index is None else question.options[index]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
