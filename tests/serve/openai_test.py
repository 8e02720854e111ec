"""The `openai` package against `calibatt serve`, unchanged: pip install openai==3.57.0; CALIBATT_PROGRAM=… python tests/serve/openai_test.py"""
import os
import tempfile

import openai

from service import LONG, Service, run

SMALL = {"size": "64x64", "extra_body": {"num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1}}


def client_of(service, key="unused"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key=key, max_retries=0)


def test_create_poll_download_list_delete():
    with Service() as service, tempfile.TemporaryDirectory() as folder:
        client = client_of(service)
        video = client.videos.create_and_poll(prompt="a red circle", **SMALL)
        assert video.status == "completed" and video.progress == 100 and video.size == "64x64", video
        path = os.path.join(folder, "v.mp4")
        client.videos.download_content(video.id).write_to_file(path)
        with open(path, "rb") as file:
            assert file.read()[4:8] == b"ftyp"
        other = client.videos.create(prompt="a blue square", seconds="4", size="64x64", extra_body={"num_inference_steps": 1})
        assert other.seconds == "4" and client.videos.retrieve(other.id).id == other.id
        client.videos.poll(other.id)
        assert [each.id for each in client.videos.list(limit=1)] == [other.id, video.id], "its pages follow each other"
        assert client.videos.delete(video.id).deleted is True
        assert [each.id for each in client.videos.list()] == [other.id]
        assert [each.id for each in client.models.list()] == ["tiny-wan"]


def test_errors_have_their_types():
    with Service("--api-key", "right") as service:
        for call, kind in ((lambda c: c.videos.retrieve("video_0"), openai.NotFoundError),
                           (lambda c: c.videos.create(prompt="a", size="65x64"), openai.BadRequestError),
                           (lambda c: c.videos.create(prompt="a", model="sora-2"), openai.NotFoundError)):
            try:
                call(client_of(service, "right"))
                raise AssertionError("no error")
            except kind as error:
                assert error.body["message"], error
        try:
            client_of(service, "wrong").videos.list()
            raise AssertionError("no error")
        except openai.AuthenticationError as error:
            assert error.code == "invalid_api_key"


def test_a_running_video_is_deleted():
    with Service() as service:
        client = client_of(service)
        video = client.videos.create(prompt="a", size="256x256", extra_body={name: LONG[name] for name in ("num_frames", "num_inference_steps")})
        while client.videos.retrieve(video.id).status == "queued":
            pass
        assert client.videos.delete(video.id).deleted is True


if __name__ == "__main__":
    run(globals())
