"""The checks of a server before a stage, against scripted servers, and the doctor's report."""

import json

import pytest

from personavlm_lib.models.chat import RequestFailure
from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.models.preflight import check_server, require_server
from personavlm_lib.study import doctor
from personavlm_lib.study.components import model_fingerprint, open_profile_model
from personavlm_lib.study.profiles import ProfileError

LONG = "a long prompt " * 200


def server(sees=True, names=True, lists=("teller",), window=10**6, refuses_pictures=False):
    """A script of a server that counts a token per character, and 200 per picture."""

    def script(body):
        if "get" in body:
            return json.dumps({"data": [{"id": name} for name in lists]}).encode()
        content = body["messages"][-1]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        has_picture = any(part["type"] == "image_url" for part in parts)
        if has_picture and refuses_pictures:
            return 400
        text = "".join(part.get("text", "") for part in parts)
        tokens = min(len(text), window) + 200 * (has_picture and sees)
        reply = "It is red." if has_picture and names else "Hello!"
        message = {"role": "assistant", "content": reply}
        usage = {"prompt_tokens": tokens, "completion_tokens": 3}
        choices = [{"message": message, "finish_reason": "stop"}]
        return json.dumps({"choices": choices, "usage": usage}).encode()

    script.answers_get = True
    return script


@pytest.mark.parametrize(
    ("behavior", "expected"),
    [
        ({}, {"listed": True, "answers": True, "pictures": True, "context window": True}),
        (dict(lists=("other",)), {"listed": None, "pictures": True}),
        (dict(names=False), {"pictures": None}),
        (dict(sees=False, names=False), {"pictures": False}),
        (dict(sees=False), {"pictures": None}),
        (dict(refuses_pictures=True), {"answers": True, "pictures": False}),
        (dict(window=1000), {"context window": False}),
    ],
)
def test_each_server_is_judged_by_what_it_does(served, behavior, expected):
    with served(server(**behavior)) as (source, _):
        findings = check_server(EndpointModel(source, retries=0), LONG)
    outcome = {finding.name: finding.ok for finding in findings}
    assert outcome == outcome | expected
    assert len(findings) == 4


def test_prompt_over_the_window_is_a_doubt(served):
    def script(body):
        too_long = (
            "messages" in body and len(str(body["messages"])) > 1000 and "image" not in str(body)
        )
        message = b'{"error": {"message": "maximum context length is 500 tokens"}}'
        return (400, {}, message) if too_long else server()(body)

    with served(script) as (source, _):
        findings = check_server(EndpointModel(source, retries=0), LONG)
    assert findings[-1].ok is None and "context window" in findings[-1].text


def test_stage_is_stopped_in_words_before_its_requests(served, capsys):
    with served(server(refuses_pictures=True)) as (source, _):
        with pytest.raises(RuntimeError, match="pictures: refused"):
            open_profile_model("any", source, "rl")
    with served(server(names=False)) as (source, _):
        entry = {"model": source, "connections": 3, "temperature": 0.5}
        model = open_profile_model("any", entry, "rl")
        assert model.connections == 3 and model.name == "rl"
    assert "rl: pictures: 200 tokens" in capsys.readouterr().out
    with pytest.raises(RequestFailure, match="cannot be reached"):
        require_server(EndpointModel("http://127.0.0.1:9/v1#m", retries=0))


def test_settings_of_a_profile_are_checked_and_identify_the_answers():
    source = "http://host/v1#m"
    with pytest.raises(ProfileError, match="'conections'.*'connections'"):
        open_profile_model("any", {"model": source, "conections": 3})
    with pytest.raises(ProfileError, match="lacks 'model'"):
        open_profile_model("any", {"connections": 3})
    plain = model_fingerprint("any", source)
    assert model_fingerprint("any", {"model": source, "connections": 3}) == plain
    assert model_fingerprint("any", {"model": source, "temperature": 0.5}) != plain


def test_doctor_shows_the_servers_of_a_profile(served, tmp_path, capsys):
    with served(server(sees=False, names=False)) as (source, _):
        profile = tmp_path / "mine.yaml"
        models = json.dumps({"rl": {"model": source, "retries": 0}, "sft": "02_sft"})
        profile.write_text(f"seed: 0\nstages: {{}}\ncommon: {{models: {models}}}", encoding="utf-8")
        doctor.run_checks(str(profile))
    printed = capsys.readouterr().out
    assert "ok       rl, answers: 'Hello!'" in printed
    assert "MISSING  rl, pictures: not seen: 0 tokens" in printed
    assert "GiB free" in printed and "hub cache" in printed
