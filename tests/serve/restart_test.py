"""SIGKILL at any moment: nothing that a client was told is lost, nothing is made twice. How soon the service is back is printed."""
import json
import os
import random
import signal
import tempfile
import threading
import time

from service import ENDLESS, LONG, Service, run


def kill(service):
    service.process.send_signal(signal.SIGKILL)
    service.process.communicate()


def test_killed_in_every_state():
    with tempfile.TemporaryDirectory() as folder:
        service = Service(folder=folder)
        completed = service.create()["id"]
        content = service.wait(completed) and service.ask("GET", f"/v1/videos/{completed}/content")[2]
        deleted = service.wait(service.create()["id"])["id"]
        service.json("DELETE", f"/v1/videos/{deleted}")
        running = service.run_until("denoise", {**LONG, "num_inference_steps": 4})
        queued = service.create()["id"]
        gone = service.create()["id"]
        service.json("DELETE", f"/v1/videos/{gone}")
        kill(service)
        service = Service(folder=folder)
        print(f"  back in {service.ready_seconds:.2f} s")
        assert service.ask("GET", f"/v1/videos/{completed}/content")[2] == content
        assert service.wait(running)["status"] == "completed"
        assert service.wait(queued)["status"] == "completed"
        for each in (deleted, gone):
            assert service.ask("GET", f"/v1/videos/{each}")[0] == 404
        # A video is the same whether its first run was killed or not.
        again = service.wait(service.create(LONG, num_inference_steps=4)["id"])["id"]
        assert service.ask("GET", f"/v1/videos/{running}/content")[2] == service.ask("GET", f"/v1/videos/{again}/content")[2]
        # Killed while a job that runs is being cancelled.
        running = service.create(ENDLESS)["id"]
        service.wait(running, ("in_progress",))
        service.json("DELETE", f"/v1/videos/{running}")
        kill(service)
        service = Service(folder=folder)
        assert service.ask("GET", f"/v1/videos/{running}")[0] == 404
        service.stop()
        ids = [each["id"] for each in (json.load(open(os.path.join(folder, name, "job.json"), encoding="utf-8"))
                                       for name in os.listdir(folder) if name.startswith("video_"))]
        assert sorted(ids) == sorted(name for name in os.listdir(folder) if not name == ".lock"), os.listdir(folder)


def test_what_waits_is_told_where_it_is_stopped():
    with tempfile.TemporaryDirectory() as folder:
        for text in ("1 video waits in", "2 videos wait in"):
            service = Service(folder=folder)
            service.create(ENDLESS)
            code, said = service.stop()
            assert code == 130 and text in said and said.endswith(f"goes on with {'it' if text[0] == '1' else 'them'}\n"), (code, said)


def test_killed_at_random_moments():
    chance, back = random.Random(1), []
    with tempfile.TemporaryDirectory() as folder:
        told = set()
        service = Service(folder=folder)
        for _ in range(8):
            ended = threading.Event()

            def ask_on(port_of=service, done=ended):
                while not done.is_set():
                    try:
                        told.add(port_of.create()["id"])
                    except (OSError, AssertionError, ValueError, EOFError):
                        pass
                    except Exception as error:  # http.client's own, of a connection that was cut
                        assert type(error).__module__ == "http.client", error

            clients = [threading.Thread(target=ask_on) for _ in range(4)]
            for client in clients:
                client.start()
            time.sleep(chance.uniform(0.05, 0.6))
            kill(service)
            ended.set()
            for client in clients:
                client.join()
            service = Service(folder=folder)
            back.append(service.ready_seconds)
        for each in told:
            assert service.wait(each)["status"] == "completed"
        listed, after = [], ""
        while True:
            page = service.json("GET", f"/v1/videos?limit=100&order=asc&after={after}" if after else "/v1/videos?limit=100&order=asc")
            listed += [each["id"] for each in page["data"]]
            if not page["has_more"]:
                break
            after = page["last_id"]
        assert len(listed) == len(set(listed)) and told <= set(listed)
        print(f"  {len(told)} videos were told, {len(listed)} were taken; back in {max(back):.2f} s at most")
        service.stop()


if __name__ == "__main__":
    run(globals())
