"""`calibatt serve` as clients meet it, with a real socket."""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

from service import ENDLESS, LONG, MODEL, PATIENCE, PROGRAM, SMALL, Service, multipart, run


def test_a_video_is_what_generate_makes():
    with Service() as service, tempfile.TemporaryDirectory() as folder:
        video = service.create()
        assert video["object"] == "video" and video["status"] in ("queued", "in_progress"), video
        done = service.wait(video["id"])
        assert done["status"] == "completed" and done["progress"] == 100, done
        assert done["expires_at"] == done["completed_at"] + 24 * 3600 and done["inference_time_s"] > 0, done
        status, headers, content = service.ask("GET", f"/v1/videos/{video['id']}/content")
        assert status == 200 and headers["Content-Type"] == "video/mp4" and headers["Accept-Ranges"] == "bytes"
        path = os.path.join(folder, "v.mp4")
        subprocess.run([PROGRAM, "generate", "-m", MODEL, "-p", SMALL["prompt"], "-W", "64", "-H", "64", "--video-frames", "5", "--steps", "1",
                        "--cfg-scale", "1", "-s", "1", "--threads", "1", "--backend", "cpu", "-o", path], check=True, capture_output=True)
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).digest() == hashlib.sha256(content).digest()


def test_json_and_multipart_mean_the_same():
    with Service() as service:
        headers, body = multipart({**SMALL, "seconds": "1"})  # beside num_frames: refused in either form
        assert service.ask("POST", "/v1/videos", {**SMALL, "seconds": "1"})[0] == 400
        assert service.ask("POST", "/v1/videos", body, headers)[0] == 400
        headers, body = multipart(SMALL)
        first = service.json("POST", "/v1/videos", body, headers)
        second = service.create()
        same = ("prompt", "size", "seconds", "model", "seed", "num_inference_steps", "guidance_scale")
        assert [first[name] for name in same] == [second[name] for name in same]


def test_ranges():
    with Service() as service:
        path = f"/v1/videos/{service.wait(service.create()['id'])['id']}/content"
        whole = service.ask("GET", path)[2]
        for header, part in (("bytes=0-99", whole[:100]), ("bytes=100-", whole[100:]), ("bytes=-7", whole[-7:])):
            status, headers, got = service.ask("GET", path, headers={"Range": header})
            assert status == 206 and got == part, (header, status, len(got))
            assert headers["Content-Range"].endswith(f"/{len(whole)}") and int(headers["Content-Length"]) == len(part)
        assert service.ask("GET", path, headers={"Range": f"bytes={len(whole)}-"})[0] == 416
        # RFC 9110, 14.2: what is no range in bytes is not looked at.
        for header in ("bytes=0-1,5-6", "items=0-5", "bytes=5-2", "bytes=0-1,5-2", "bytes", "bytes=x"):
            status, headers, got = service.ask("GET", path, headers={"Range": header})
            assert status == 200 and got == whole and "Content-Range" not in headers, (header, status, len(got))
        assert service.ask("GET", "/v1/videos", headers={"Range": "items=0-5"})[0] == 200
        assert service.ask("POST", "/v1/videos", SMALL, {"Range": "items=0-5"})[0] == 400
        assert service.ask("GET", path)[2] == whole, "and the service goes on"
        status, headers, got = service.ask("HEAD", path)
        assert status == 200 and got == b"" and int(headers["Content-Length"]) == len(whole)


def test_a_running_video_is_cancelled_within_a_step():
    with Service() as service:
        video = service.run_until("denoise", ENDLESS)
        waiting = service.create()
        assert service.json("DELETE", f"/v1/videos/{video}")["deleted"] is True
        assert service.wait(waiting["id"])["status"] == "completed", "the next video begins as soon as this one is gone"
        assert service.ask("GET", f"/v1/videos/{video}")[0] == 404
        assert os.listdir(service.folder).count(video) == 0


def test_the_queue_has_a_bound_and_keeps_its_order():
    with Service("--max-queue", "2") as service:
        running = service.create(ENDLESS)
        service.wait(running["id"], ("in_progress",))
        waiting = [service.create()["id"] for _ in range(2)]
        status, headers, text = service.ask("POST", "/v1/videos", SMALL)
        assert status == 429 and json.loads(text)["error"]["code"] == "queue_full" and headers["Retry-After"] == "5"
        service.json("DELETE", f"/v1/videos/{running['id']}")
        done = [service.wait(each) for each in waiting]
        assert done[0]["completed_at"] <= done[1]["completed_at"]
        assert [each["id"] for each in service.json("GET", "/v1/videos?order=asc")["data"]] == waiting


def test_several_models_and_plans():
    with Service("-m", f"second={MODEL}") as service:
        names = [each["id"] for each in service.json("GET", "/v1/models")["data"]]
        assert names == ["tiny-wan", "second"], names
        first = service.create()["id"]
        second = service.create(model="second")["id"]
        third = service.create()["id"]
        contents = []
        for each in (first, second, third):
            assert service.wait(each)["status"] == "completed"
            contents.append(service.ask("GET", f"/v1/videos/{each}/content")[2])
        assert contents[0] == contents[1] == contents[2], "two names of one folder"
        assert service.json("POST", "/v1/videos", {**SMALL, "model": "third"}, status=404)["error"]["code"] == "model_not_found"


def refused_start(*flags):
    try:
        with Service(*flags):
            return "started"
    except AssertionError as error:
        return str(error)


def test_what_no_request_could_run_with_is_refused_at_the_start():
    assert "--max-steps 10: tiny-wan makes 20 steps" in refused_start("--max-steps", "10")
    assert "the CPU computes in 16 or 32 bits" in refused_start("--attention-dtype", "fp8")
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        shutil.copytree(MODEL, model)
        try:
            with Service(folder=model, model=model):
                raise SystemExit("the model's folder was taken for videos")
        except AssertionError as error:
            assert "give a folder of its own" in str(error), error


def test_videos_of_another_start_wait():
    with tempfile.TemporaryDirectory() as folder:
        with Service("-m", f"other={MODEL}", folder=folder) as service:
            running = service.create(ENDLESS)["id"]
            service.wait(running, ("in_progress",))
            waiting = service.create(model="other")["id"]
        with Service(folder=folder) as service:
            service.json("DELETE", f"/v1/videos/{running}")
            assert service.wait(service.create()["id"])["status"] == "completed", "others are made"
            video = service.json("GET", f"/v1/videos/{waiting}")
            assert video["status"] == "queued" and "the model other is not served now" in video["warnings"][0], video
            assert service.json("GET", "/health")["held"] == 1
            assert "1 job of an earlier start: the model other" in service.stop()[1]
        with Service("-m", f"other={MODEL}", folder=folder) as service:
            assert service.wait(waiting)["status"] == "completed"


def test_a_folder_that_is_removed_is_told():
    with tempfile.TemporaryDirectory() as above:
        folder = os.path.join(above, "videos")
        with Service(folder=folder) as service:
            assert service.json("GET", "/health")["status"] == "ok"
            shutil.rmtree(folder)
            assert service.json("GET", "/health", status=503)["status"] == "failing"


def test_a_plan_is_applied():
    with tempfile.TemporaryDirectory() as folder:
        plan = os.path.join(folder, "fast.safetensors")
        prompts = os.path.join(folder, "prompts.txt")
        with open(prompts, "w", encoding="utf-8") as file:
            file.write("a red circle\na blue square\n")
        subprocess.run([PROGRAM, "calibrate", "-m", MODEL, "--prompts", prompts, "-o", plan, "-W", "128", "-H", "128", "--video-frames", "9",
                        "--steps", "4", "--density", "0.5", "--threads", "1", "--backend", "cpu"], check=True, capture_output=True)
        fields = {"prompt": "a red circle", "size": "128x128", "num_frames": 9, "num_inference_steps": 4, "seed": 1}
        # Requests that say nothing would use it, and make another video than it was made for.
        assert "was made for 9 frames of 128×128, this run makes 65 frames of 256×256" in refused_start("--plan", plan)
        with Service("--plan", plan, "--on-mismatch", "dense"):
            pass
        with Service("-m", f"mochi={MODEL}/../tiny-mochi", "--plan", plan, "-W", "128", "-H", "128") as service:
            models = {each["id"]: each["plans"] for each in service.json("GET", "/v1/models")["data"]}
            assert models == {"tiny-wan": ["fast"], "mochi": []}, models
        with Service("--plan", plan, "-W", "128", "-H", "128", "--video-frames", "9") as service:
            planned = service.wait(service.create(fields)["id"])
            dense = service.wait(service.create(fields, plan="none")["id"])
            assert planned["plan"] == "fast" and planned["density"] < 0.75, planned
            assert dense["plan"] is None and dense["density"] == 1, dense
            for choice in ({}, {"plan": "fast"}):  # it is the default
                error = service.json("POST", "/v1/videos", {**fields, "num_frames": 5, **choice}, status=400)["error"]
                assert error["param"] == "plan" and error["code"] == "plan_mismatch", error
                assert "made for 9 frames of 128×128, this run makes 5 frames of 128×128" in error["message"], error
            assert service.wait(service.create({**fields, "num_frames": 5}, on_mismatch="dense")["id"])["density"] == 1


def test_a_video_begins_with_a_picture():
    with tempfile.TemporaryDirectory() as model:
        for part in ("text_encoder", "tokenizer", "vae", "scheduler"):
            os.symlink(os.path.join(os.path.abspath(MODEL), part), os.path.join(model, part))
        data = os.path.join(os.path.dirname(os.path.abspath(MODEL)), "../tests/golden/data")
        for part in ("transformer", "transformer_2"):
            os.symlink(os.path.join(data, "i2v", part), os.path.join(model, part))
        with open(os.path.join(MODEL, "model_index.json"), encoding="utf-8") as file:
            index = json.load(file)
        index.update({"_class_name": "WanImageToVideoPipeline", "transformer_2": index["transformer"], "boundary_ratio": 0.9})
        for name, content in (("model_index.json", index), ("generation_config.json", {"width": 64, "height": 64, "num_frames": 5})):
            with open(os.path.join(model, name), "w", encoding="utf-8") as file:
                json.dump(content, file)
        picture = os.path.join(data, "pictures/photo6.jpg")
        with open(picture, "rb") as file:
            content = file.read()
        fields = {"prompt": "a", "num_inference_steps": 2, "seed": 3}
        with Service("--dtype", "fp32", "--max-megapixels", "1", model=f"i2v={model}") as service:
            assert service.json("POST", "/v1/videos", fields, status=400)["error"]["param"] == "input_reference"
            headers, body = multipart(fields, [("input_reference", "photo6.jpg", content[:200])])
            assert service.json("POST", "/v1/videos", body, headers, status=400)["error"]["param"] == "input_reference"
            headers, body = multipart(fields, [("input_reference", "photo6.jpg", content)])
            video = service.json("POST", "/v1/videos", body, headers)
            assert video["size"] == "48x80" and video["input_reference"] is True, "of the picture's shape"
            assert service.wait(video["id"])["status"] == "completed", service.wait(video["id"])
            made = service.ask("GET", f"/v1/videos/{video['id']}/content")[2]
        path = os.path.join(model, "v.mp4")
        subprocess.run([PROGRAM, "generate", "-m", model, "-p", "a", "--image", picture, "--steps", "2", "-s", "3", "--dtype", "fp32", "--threads", "1",
                        "--backend", "cpu", "-o", path], check=True, capture_output=True)
        with open(path, "rb") as file:
            assert file.read() == made
    with Service() as service:
        headers, body = multipart(SMALL, [("input_reference", "photo6.jpg", content)])
        assert "text alone" in service.json("POST", "/v1/videos", body, headers, status=400)["error"]["message"]


def test_ctrl_c_ends_it_and_the_next_start_goes_on():
    with tempfile.TemporaryDirectory() as folder:
        for sig in (signal.SIGINT, signal.SIGTERM):
            for _ in range(20):  # the video may end before the signal is there
                service = Service(folder=folder)
                running = service.run_until("denoise", {**LONG, "num_inference_steps": 4, "seed": int(sig)})
                code, errors = service.stop(sig)
                assert code == 130, (code, errors)
                if "1 video" in errors:
                    break
            assert "1 video" in errors and "the same command goes on" in errors, errors
            service = Service(folder=folder)
            assert service.wait(running)["status"] == "completed"
            service.stop()


def test_two_services_do_not_share_a_folder_or_a_port():
    with Service() as service:
        for flags, words in ((["-o", service.folder, "--port", "0"], "another calibatt serve"), (["--port", str(service.port)], "cannot listen")):
            with tempfile.TemporaryDirectory() as folder:
                result = subprocess.run([PROGRAM, "serve", "-m", MODEL, "-o", folder, *flags], capture_output=True, text=True, timeout=PATIENCE, check=False)
            assert result.returncode == 6 and words in result.stderr, result.stderr


def test_a_key():
    with Service("--api-key", "s3cret") as service:
        assert service.ask("GET", "/v1/videos")[0] == 401
        assert service.ask("POST", "/v1/videos", SMALL)[0] == 401
        assert service.ask("GET", "/health")[0] == 200
        assert service.ask("GET", "/v1/videos", headers={"Authorization": "Bearer s3cret"})[0] == 200


def test_old_videos_expire():
    with Service("--keep-hours", "0.001") as service:
        video = service.create()["id"]
        end = time.monotonic() + PATIENCE
        while service.ask("GET", f"/v1/videos/{video}")[0] != 404:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert service.metric('calibatt_jobs_ended_total{outcome="completed"}') == 1
        assert video not in os.listdir(service.folder)
        assert service.metric('calibatt_jobs_ended_total{outcome="expired"}') == 1


if __name__ == "__main__":
    run(globals())
