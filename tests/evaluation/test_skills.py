"""Test the skill suite: what right and wrong replies score, and what the prompts show."""

import pandas as pd
import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.agent.protocol_writer import write_answer, write_retrieve
from personavlm_lib.evaluation import skills
from personavlm_lib.evaluation.skills import SkillSettings, skill_suite
from personavlm_lib.models.engine import run_trajectories
from personavlm_lib.study import figures

RARE_SKILLS = {"thing in a scene", "word in a scene", "thing seen again"}
FACTS_SHOWN = {
    "option from value": 1,
    "newest of several": 8,
    "look up among 4": 4,
    "look up among 8": 8,
    "look up among 12": 12,
    **{f"{target} in a scene": 0 for target in skills.IN_SCENES},
}


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    return skill_suite(tmp_path_factory.mktemp("lives"), SkillSettings(8, 5))


def score_replies(item, script, replies):
    """Run an item with a model that says `replies`; its scores, and the texts of its requests."""
    model = script(replies)
    (result,) = run_trajectories([item.trajectory], model)
    return item.score(item.gold, result), [request.text for request in model.asks]


def is_whole_trajectory(item) -> bool:
    return item.trajectory.gi_code.co_name == "respond"


def test_right_replies_score_full_marks_in_every_skill(items, script):
    items_of = dict.fromkeys(skills.SKILLS, 0)
    for item in items:
        replies = [item.gold]
        if is_whole_trajectory(item):
            replies = [write_retrieve("so", "it"), write_answer("so", item.gold)]
        scores, prompts = score_replies(item, script, replies)
        for skill, values in scores.items():
            items_of[skill] += 1
            best = 0.0 if "error" in skill else 1.0
            assert set(values) <= {best}, (skill, prompts, item.gold)
        if is_whole_trajectory(item):
            (skill,) = scores
            assert_prompt_shows_what_the_skill_needs(skill, prompts[1], item.gold)
    assert {skill for skill, count in items_of.items() if count < 4} <= RARE_SKILLS


def assert_prompt_shows_what_the_skill_needs(skill: str, prompt: str, gold: str) -> None:
    facts = prompt.split("semantic\n")[1].split("episodic")[0].splitlines()
    assert len(facts) == FACTS_SHOWN[skill]
    in_scene = "scene" in skill
    assert prompt.count("<img>") == in_scene
    assert in_scene or any(gold in fact.split() for fact in facts)


def test_without_retrieval_the_first_prompt_shows_the_raw_turns(tmp_path, script):
    for item in skill_suite(tmp_path, SkillSettings(4, 6, retrieving=False)):
        scores, prompts = score_replies(item, script, ["<think>hm</think><answer>nothing</answer>"])
        right = set()
        for skill, values in scores.items():
            if "error" not in skill and any(values):
                right.add(skill)
        # an unreadable reply counts as a neutral reading, and some turns are neutral
        assert right <= {"answer or retrieve, F1", "Big Five of a turn"}
        if "look up among 8" in scores:
            recent = prompts[0].split("recent\n")[1]
            assert recent.count(" assistant ") == 8
            assert "answer now" in prompts[0]


def test_no_question_about_an_image_is_asked_twice(tmp_path):
    questions = []
    for item in skill_suite(tmp_path, SkillSettings(16, 7)):
        text = item.request.split(" options ")[0]
        if "<img>" in item.request and "options" not in text and "ask" not in text:
            questions.append((item.user, text))
    assert len(questions) == len(set(questions)) > 16


def test_the_seed_determines_the_lives(tmp_path):
    first = skill_suite(tmp_path / "0", SkillSettings(4, 1))
    same = skill_suite(tmp_path / "1", SkillSettings(4, 1))
    other = skill_suite(tmp_path / "2", SkillSettings(4, 2))
    assert contents(first) == contents(same)
    assert {item.user for item in first}.isdisjoint(item.user for item in other)


def contents(items) -> list[tuple[str, str]]:
    return [(item.request, item.gold) for item in items]


def rows(skill, values, user="a"):
    return [
        dict(skill=skill, user=user, item=f"{user}{i}", value=value, error="")
        for i, value in enumerate(values)
    ]


def test_the_table_computes_f1_errors_and_wilson_intervals():
    f1_values = []
    for gold, predicted in (({1}, {1}), ({1}, {1}), ({1}, set()), (set(), {1})):
        f1_values += skills._f1_values(gold, predicted)
    frame = pd.DataFrame(
        rows("answer or retrieve, F1", f1_values)
        + rows("keywords", [1.0] * 20, "a")
        + rows("keywords", [1.0] * 20, "b")
        + rows("Big Five, error", [0.5, 1.5])
    )
    table = skills.skill_table(frame).set_index("skill")
    assert list(table.index) == ["answer or retrieve, F1", "keywords", "Big Five, error"]
    f1 = table.loc["answer or retrieve, F1", "score"]
    assert f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert table.loc["keywords", "n"] == 40
    assert 0.9 < table.loc["keywords", "low"] < 0.95
    assert table.loc["Big Five, error", ["score", "target"]].tolist() == [1.0, 0.5]


def test_the_command_measures_a_folder_and_draws_the_radar(checkpoint, tmp_path, capsys):
    out = tmp_path / "skills.json"
    options = ["--questions", "1", "--json", str(out), "--plot", str(tmp_path)]
    status = main(["skills", "--model", str(checkpoint), *options])
    output = capsys.readouterr()
    assert status == 0, output.err
    assert "look up among 8" in output.out
    assert (tmp_path / "skills.png").stat().st_size > 10_000
    table = pd.read_json(out)
    assert {"look up among 8", "thing seen again", "core update"} <= set(table["skill"])
    seen_again = table.loc[table["skill"] == "thing seen again", "score"]
    assert seen_again.item() >= 0.9


def test_the_command_fails_for_a_run_that_does_not_exist(capsys):
    assert main(["skills", "--model", "nowhere/02_sft"]) == 1
    assert "reproduce" in capsys.readouterr().err


def test_the_radar_has_a_line_for_each_model():
    values = rows("keywords", [1.0]) + rows("topics", [0.0]) + rows("core update", [1.0])
    table = skills.skill_table(pd.DataFrame(values))
    by_model = pd.concat([table.assign(model=name) for name in ("backbone", "sft")])
    figure = figures.skills_radar(by_model)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["backbone", "sft", "target"]
