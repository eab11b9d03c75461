"""The server over a local model, over real HTTP: the same text as the model itself generates."""

import base64
import json
import random
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO

import pytest
from PIL import Image

from personavlm_lib.__main__ import main
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.models.local import LocalModel
from personavlm_lib.models.serve import ChatServer
from personavlm_lib.simulation.scenes import render, sample_scene
from personavlm_lib.study.components import model_source, open_model
from personavlm_lib.study.profiles import BACKBONE


@contextmanager
def serving(model):
    with ChatServer(model, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(model, processor):
    local = LocalModel(model=model, processor=processor, name="tiny")
    with serving(local) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for n, color in enumerate(("red", "blue")):
        scene = sample_scene(random.Random(n), [("cup", color)])
        path = str(folder / f"{n}.png")
        image = render(scene)
        image.save(path)
        paths.append(path)
    return paths


def server_url(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def post(server, **changes):
    """Status and JSON response of a chat completion request."""
    message = {"role": "user", "content": "hello"}
    body = {"model": "tiny", "messages": [message], "max_tokens": 4}
    data = json.dumps(body | changes).encode()
    url = server_url(server, "/v1/chat/completions")
    request = urllib.request.Request(url, data)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def finish(server, **changes):
    """Finish reason and usage of a chat completion request."""
    _, response = post(server, **changes)
    choice = response["choices"][0]
    return choice["finish_reason"], response["usage"]


def three_steps(pictures, n):
    """Requests of one conversation, with images in the first and in a later one."""
    look = ChatRequest(f"look at my cup <img> and {n}", (pictures[n % 2],), max_tokens=8)
    color = ChatRequest("what color is cup ? <img>", (pictures[1],), max_tokens=6)
    return look, color, ChatRequest("answer now", max_tokens=5)


def test_server_returns_the_text_and_counts_of_the_published_model(pictures):
    """Over several steps, with images, in parallel.

    Only with a trained model: an untrained one may write bytes that are not text, which a server
    can only replace.
    """
    conversations = [three_steps(pictures, n) for n in range(3)]
    local = LocalModel(BACKBONE, name="nano")
    served = LocalModel(model=local.model, processor=local.processor, name="nano")
    with serving(served) as server:
        remote = open_model(server.source)
        assert isinstance(remote, EndpointModel)
        assert remote.name == "nano"
        local_transcripts = [local.start() for _ in conversations]
        remote_transcripts = [remote.start() for _ in conversations]
        for requests in zip(*conversations, strict=True):
            expected = []
            for pair in zip(local_transcripts, requests, strict=True):
                expected += local.reply([pair])
            asked = list(zip(remote_transcripts, requests, strict=True))
            assert remote.reply(asked) == expected
    first_replies = {transcript[1]["content"] for transcript in remote_transcripts}
    assert len(first_replies) > 1  # they depend on the picture and the number


def test_simultaneous_requests_share_a_batch(server, monkeypatch):
    batch_sizes = []
    reply = server.model.reply

    def spy(asked):
        batch_sizes.append(len(asked))
        return reply(asked)

    monkeypatch.setattr(server.model, "reply", spy)
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda n: post(server, temperature=n % 2), range(8)))
    assert {status for status, _ in responses} == {200}
    assert sum(batch_sizes) == 8
    assert len(batch_sizes) < 8


def test_system_message_is_part_of_the_prompt(server):
    user = {"role": "user", "content": "hello"}
    system = {"role": "system", "content": "my drink is tea"}
    _, plain_usage = finish(server, messages=[user])
    _, system_usage = finish(server, messages=[system, user])
    assert plain_usage["prompt_tokens"] != system_usage["prompt_tokens"]


def test_finish_reason_says_whether_the_reply_was_cut(server):
    reason, usage = finish(server, max_tokens=4)
    assert reason == "length"
    assert usage["completion_tokens"] == 4
    reason, usage = finish(server, max_tokens=400)
    length = usage["completion_tokens"]
    assert reason == "stop" or length == 400


def image_message(url):
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part]}]


NOT_AN_IMAGE = "data:image/png;base64,bm9uZQ=="
ASSISTANT_FIRST = [{"role": "assistant", "content": "a"}]
NO_CONTENT = [{"role": "user"}]
AUDIO = [{"role": "user", "content": [{"type": "audio"}]}]


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        (dict(stream=True), 400, "stream"),
        (dict(tools=[{}]), 400, "tools"),
        (dict(model="other"), 404, "'other'"),
        (dict(max_completion_tokens=-1), 400, "max_completion_tokens"),
        (dict(temperature="hot"), 400, "temperature"),
        (dict(messages="hello"), 400, "messages"),
        (dict(messages=[]), 400, "must take turns"),
        (dict(messages=ASSISTANT_FIRST), 400, "must take turns"),
        (dict(messages=NO_CONTENT), 400, "'content'"),
        (dict(messages=AUDIO), 400, "'image_url'"),
        (dict(messages=image_message("https://example.org/a.png")), 400, "data:image/"),
        (dict(messages=image_message(NOT_AN_IMAGE)), 400, "messages.0.image.0 cannot be read"),
    ],
)
def test_bad_request_gets_a_reason_and_the_server_continues(server, changes, status, reason):
    code, response = post(server, **changes)
    assert code == status
    assert reason in response["error"]["message"]
    code, _ = post(server)
    assert code == 200


def test_jpeg_image_is_accepted(server):
    file = BytesIO()
    image = Image.new("RGB", (300, 200), "red")
    image.save(file, "jpeg")
    jpeg = file.getvalue()
    data = base64.b64encode(jpeg).decode()
    messages = image_message(f"data:image/jpeg;base64,{data}")
    status, _ = post(server, messages=messages)
    assert status == 200


def test_models_are_listed_and_other_paths_are_not_found(server):
    models_url = server_url(server, "/v1/models")
    with urllib.request.urlopen(models_url) as response:
        [model] = json.load(response)["data"]
    assert model["id"] == "tiny"
    other_url = server_url(server, "/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(other_url)


def test_port_in_use_is_reported_in_one_line(server, checkpoint, capsys):
    port = str(server.server_port)
    assert main(["serve", "--model", str(checkpoint), "--port", port]) == 1
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_profile_may_name_a_server_or_a_stage(server, tmp_path, monkeypatch, checkpoint):
    assert model_source("any", server.source) == server.source
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        model_source("any", "03_grpo")
    model = open_model(checkpoint)
    assert isinstance(model, LocalModel)
