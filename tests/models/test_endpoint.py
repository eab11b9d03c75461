"""A server as a ChatModel, over real HTTP: what is sent, what is kept, and what each kind of failure becomes."""

import base64
import logging
import time

import pytest
from PIL import Image

from personavlm_lib.models.chat import ChatReply, ChatRequest
from personavlm_lib.models.endpoint import API_KEY_VARIABLE, EndpointError, EndpointModel

DOWN = "http://127.0.0.1:9/v1#teller"  # the port of `discard`, where nobody listens


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cup.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return str(path)


def test_messages_are_kept_in_full_and_images_arrive(served, picture):
    lines = iter(["<think>\n a  cup </think>\n<retrieve>x</retrieve>", "<answer>tea</answer>"])
    with served(lambda body: next(lines)) as (source, asked):
        model = EndpointModel(source)
        transcript = model.start()
        first = model.reply(
            [(transcript, ChatRequest("look <img> here", (picture,), max_tokens=9))]
        )
        model.reply([(transcript, ChatRequest("found <|im_end|>", max_tokens=5))])
    assert first == [ChatReply("<think>\n a  cup </think>\n<retrieve>x</retrieve>", 7, 3)]
    look, image, here = asked[0]["messages"][0]["content"]
    assert (look["text"], here["text"]) == ("look ", " here")
    head, data = image["image_url"]["url"].split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == open(picture, "rb").read()
    assert [m["content"] for m in asked[1]["messages"][1:]] == [first[0].text, "found < |im_end| >"]
    assert [(b["max_tokens"], b["temperature"], b["model"]) for b in asked] == [
        (9, 0.0, "teller"),
        (5, 0.0, "teller"),
    ]


def test_as_many_at_a_time_as_are_allowed_and_in_order(served):
    at_once, most = [], []

    def slow_first(body):
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.2 if body["messages"][0]["content"] == "0" else 0.05)
        at_once.pop()
        return body["messages"][0]["content"]

    with served(slow_first) as (source, _):
        model = EndpointModel(source, concurrency=3)
        replies = model.reply([(model.start(), ChatRequest(str(n))) for n in range(9)])
    assert [reply.text for reply in replies] == [str(n) for n in range(9)] and max(most) == 3


def test_what_may_pass_is_tried_again(served):
    said = iter([500, 429, None, "well"])
    with served(lambda body: next(said)) as (source, asked):
        [reply] = EndpointModel(source).reply([([], ChatRequest("hello"))])
    assert reply.text == "well" and len(asked) == 4


@pytest.mark.parametrize(
    "said, kind, tries",
    [
        (503, "request refused", 2), (429, "request refused", 2), (2.5, "timeout", 2), (None, "unreachable", 2),
        (401, "key refused", 1), (403, "key refused", 1), (404, "unknown model", 1), (400, "request refused", 1),
        (b"<html>hello</html>", "invalid response", 1), (b"[]", "invalid response", 1), (b'{"choices": []}', "invalid response", 1),
        (b'{"choices": [{"message": {"content": null}}]}', "invalid response", 1), (b"", "invalid response", 1),
    ],
)  # fmt: skip
def test_a_failed_ask_fails_alone_and_says_what_to_do(
    served, said, kind, tries, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-secret")
    with served(lambda body: said if body["messages"][-1]["content"] == "bad" else "good") as (
        source,
        asked,
    ):
        model = EndpointModel(source, retries=1, timeout=1.5 if kind == "timeout" else 60)
        transcript = model.start()
        good, bad, after = model.reply(
            [([], ChatRequest("a")), (transcript, ChatRequest("bad")), ([], ChatRequest("b"))]
        )
        assert [good.text, after.text] == ["good", "good"]
        assert isinstance(bad, EndpointError) and bad.kind == kind
        assert sum(body["messages"][-1]["content"] == "bad" for body in asked) == tries
        assert str(bad).startswith(f"server {source.split('#')[0]} ") and str(bad).count(": ") >= 1
        assert (
            transcript == [] and model.reply([(transcript, ChatRequest("again"))])[0].text == "good"
        )
    hidden = [
        str(bad),
        repr(bad),
        repr(model),
        str(bad.__cause__),
        str(bad.__context__),
        caplog.text,
    ]
    assert not any("sk-secret" in text for text in hidden)


def test_a_server_that_is_down():
    [error] = EndpointModel(DOWN, retries=0).reply([([], ChatRequest("hello"))])
    assert (
        error.kind == "unreachable"
        and "127.0.0.1:9/v1 cannot be reached" in str(error)
        and "start it" in str(error)
    )


def test_an_image_that_is_none_fails_alone(served, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"none")
    with served(lambda body: "seen") as (source, _):
        bad, good = EndpointModel(source).reply(
            [([], ChatRequest("<img>", (str(tmp_path / "bad.png"),))), ([], ChatRequest("hello"))]
        )
    assert isinstance(bad, ValueError) and "cannot be read" in str(bad) and good.text == "seen"


@pytest.mark.parametrize(
    "source", ["http://host:1/v1", "host#model", "http://user:sk-secret@host/v1#model"]
)
def test_a_source_that_names_no_model_or_holds_a_key_is_refused(source):
    with pytest.raises(ValueError) as error:
        EndpointModel(source)
    assert "sk-secret" not in str(error.value)
