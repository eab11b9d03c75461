"""A server as a ChatModel over real HTTP: requests, transcripts, and every kind of failure."""

import base64
import logging
import time
from pathlib import Path

import pytest
from PIL import Image

from personavlm_lib.models.chat import ChatReply, ChatRequest, RequestFailure
from personavlm_lib.models.endpoint import API_KEY_VARIABLE, EndpointModel

UNREACHABLE = "http://127.0.0.1:9/v1#teller"  # the discard port, on which no server listens
NULL_CONTENT = b'{"choices": [{"message": {"content": null}}]}'


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cup.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return str(path)


def reply_to(model, text, images=()):
    """The reply to one request in a new conversation."""
    [reply] = model.reply([(model.start(), ChatRequest(text, images))])
    return reply


def last_content(body):
    return body["messages"][-1]["content"]


def test_messages_are_kept_in_full_and_images_are_sent(served, picture):
    first_line = "<think>\n a  cup </think>\n<retrieve>x</retrieve>"
    lines = iter([first_line, "<answer>tea</answer>"])
    with served(lambda body: next(lines)) as (source, bodies):
        model = EndpointModel(source)
        transcript = model.start()
        look = ChatRequest("look <img> here", (picture,), max_tokens=9)
        replies = model.reply([(transcript, look)])
        found = ChatRequest("found <|im_end|>", max_tokens=5)
        model.reply([(transcript, found)])
    assert replies == [ChatReply(first_line, 7, 3)]
    first_body, second_body = bodies
    before, image, after = first_body["messages"][0]["content"]
    assert before["text"] == "look "
    assert after["text"] == " here"
    header, data = image["image_url"]["url"].split(",")
    assert header == "data:image/png;base64"
    sent_bytes = base64.b64decode(data)
    assert sent_bytes == Path(picture).read_bytes()
    _, answer, question = second_body["messages"]
    assert answer["content"] == first_line
    assert question["content"] == "found < |im_end|>"
    assert first_body["max_tokens"] == 9
    assert second_body["max_tokens"] == 5
    for body in bodies:
        assert body["temperature"] == 0.0
        assert body["model"] == "teller"


def test_concurrency_is_bounded_and_replies_are_in_order(served):
    active = []
    concurrent = []

    def slow_first(body):
        content = last_content(body)
        active.append(1)
        concurrent.append(len(active))
        time.sleep(0.2 if content == "0" else 0.05)
        active.pop()
        return content

    texts = [str(n) for n in range(9)]
    with served(slow_first) as (source, _):
        model = EndpointModel(source, connections=3)
        replies = model.reply([(model.start(), ChatRequest(text)) for text in texts])
    assert [reply.text for reply in replies] == texts
    assert max(concurrent) == 3


def test_transient_failures_are_retried(served):
    responses = iter([500, 429, None, "well"])
    with served(lambda body: next(responses)) as (source, bodies):
        reply = reply_to(EndpointModel(source), "hello")
    assert reply.text == "well"
    assert len(bodies) == 4


@pytest.mark.parametrize(
    ("response", "kind", "tries"),
    [
        (503, "server error", 2),
        (429, "too many requests", 2),
        (2.5, "timeout", 2),
        (None, "unreachable", 2),
        (401, "key refused", 1),
        (403, "key refused", 1),
        (404, "unknown model", 1),
        (400, "request refused", 1),
        (b"<html>hello</html>", "invalid response", 1),
        (b"[]", "invalid response", 1),
        (b'{"choices": []}', "invalid response", 1),
        (NULL_CONTENT, "invalid response", 1),
        (b"", "invalid response", 1),
    ],
)
def test_failed_request_fails_alone_and_hides_the_key(
    served, response, kind, tries, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-secret")

    def respond(body):
        return response if last_content(body) == "bad" else "good"

    timeout = 1.5 if kind == "timeout" else 60
    with served(respond) as (source, bodies):
        model = EndpointModel(source, retries=1, time_limit=timeout)
        transcript = model.start()
        requests = [ChatRequest("a"), ChatRequest("bad"), ChatRequest("b")]
        transcripts = [model.start(), transcript, model.start()]
        asked = list(zip(transcripts, requests, strict=True))
        before, error, after = model.reply(asked)
        assert before.text == "good"
        assert after.text == "good"
        assert isinstance(error, RequestFailure)
        assert error.kind == kind
        contents = [last_content(body) for body in bodies]
        assert contents.count("bad") == tries
        message = str(error)
        url, _ = source.split("#")
        assert message.startswith(f"server {url} ")
        assert message.count(": ") >= 1
        assert transcript == []
        [again] = model.reply([(transcript, ChatRequest("again"))])
        assert again.text == "good"
    visible = [message, repr(error), repr(model), caplog.text]
    visible += [str(error.__cause__), str(error.__context__)]
    for text in visible:
        assert "sk-secret" not in text


def test_unreachable_server_is_reported_with_a_fix():
    model = EndpointModel(UNREACHABLE, retries=0)
    error = reply_to(model, "hello")
    message = str(error)
    assert error.kind == "unreachable"
    assert "127.0.0.1:9/v1 cannot be reached" in message
    assert "start it" in message


def test_unreadable_image_fails_alone(served, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"none")
    bad = ChatRequest("<img>", (str(path),))
    good = ChatRequest("hello")
    with served(lambda body: "seen") as (source, _):
        model = EndpointModel(source)
        asked = [(model.start(), bad), (model.start(), good)]
        error, reply = model.reply(asked)
    assert isinstance(error, ValueError)
    assert "cannot be read" in str(error)
    assert reply.text == "seen"


@pytest.mark.parametrize(
    "source", ["http://host:1/v1", "host#model", "http://user:sk-secret@host/v1#model"]
)
def test_source_without_a_model_or_with_a_key_is_rejected(source):
    with pytest.raises(ValueError) as error:
        EndpointModel(source)
    assert "sk-secret" not in str(error.value)
