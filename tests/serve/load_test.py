"""Many clients at once: no video lost, none made twice, memory flat.

Usage: load_test.py [--clients N] [--jobs N]. The suite runs a small one; a release 32 clients and 200 jobs.
"""
import argparse
import hashlib
import statistics
import threading
import time

from service import SMALL, Service


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--jobs", type=int, default=40)
    wanted = arguments.parse_args()
    lock = threading.Lock()
    left = list(range(wanted.jobs))
    made, hashes, replies, problems, memory = [], {}, [], [], []

    with Service("--max-queue", str(wanted.clients)) as service:
        def client():
            try:
                while True:
                    with lock:
                        if not left:
                            return
                        seed = left.pop()
                    began = time.monotonic()
                    video = service.create(seed=seed)
                    replied = time.monotonic() - began
                    done = service.wait(video["id"])
                    assert done["status"] == "completed" and done["seed"] == seed, done
                    status, _, content = service.ask("GET", f"/v1/videos/{video['id']}/content")
                    assert status == 200
                    with lock:
                        made.append(video["id"])
                        hashes[seed] = hashlib.sha256(content).hexdigest()
                        replies.append(replied)
                        memory.append(service.metric("process_resident_memory_bytes"))
            except Exception as error:  # shown by the main thread
                problems.append(error)

        began = time.monotonic()
        clients = [threading.Thread(target=client) for _ in range(wanted.clients)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        took = time.monotonic() - began
        assert not problems, problems[0]
        assert len(made) == len(set(made)) == wanted.jobs
        assert len(set(hashes.values())) == wanted.jobs, "every seed has a video of its own"
        assert service.metric('calibatt_jobs_ended_total{outcome="completed"}') == wanted.jobs, "none was made twice"
        assert service.metric("calibatt_jobs_created_total") == wanted.jobs
        log = service.stop()[1]
        assert log.count("made in") == wanted.jobs, log
    tenth = max(1, len(memory) // 10)
    first, last = statistics.median(memory[tenth:2 * tenth]), statistics.median(memory[-tenth:])
    print(f"{wanted.jobs} videos, {wanted.clients} clients: {took:.1f} s, a request answered in {1e3 * statistics.median(replies):.1f} ms "
          f"(median; most {1e3 * max(replies):.1f}); memory {first / 1e6:.1f} MB after a tenth, {last / 1e6:.1f} MB at the end")
    assert last < first * 1.1 + 20e6, "memory grows"


main()
