"""A running `calibatt serve` for tests: started on a free port, on tiny-wan, asked by the standard library's client."""
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import time

PROGRAM = os.environ.get("CALIBATT_PROGRAM", "build/cpu/calibatt")
MODEL = os.environ.get("CALIBATT_MODEL", "models/tiny-wan")
SMALL = {"prompt": "a red circle", "size": "64x64", "num_frames": 5, "num_inference_steps": 1, "guidance_scale": 1, "seed": 1}
# Runs for some seconds.
LONG = {"prompt": "a red circle", "size": "256x256", "num_frames": 17, "num_inference_steps": 50, "seed": 1}
# Runs for many minutes: what is waited for is that somebody ends it, however long the machine lets a test wait.
ENDLESS = {**LONG, "size": "512x512", "num_frames": 33, "num_inference_steps": 100}
# Guards against hanging; nothing is said of how fast anything is.
PATIENCE = 300


class Service:
    """The process and its folder. `with Service() as service:` ends it as Ctrl-C does; the folder is given by who wants to keep it."""

    def __init__(self, *flags, folder=None, model=MODEL):
        self._own = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = folder or self._own.name
        command = [PROGRAM, "serve", "-m", model, "--port", "0", "-o", self.folder, "--threads", "1", "--backend", "cpu",
                   "--max-megapixels", "10", *flags]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.ready_seconds = time.monotonic() - self.started
        found = re.search(r"http://[^ ]*?:(\d+) ", line)
        if not found:
            raise AssertionError(f"it did not start: {line}{self.process.stderr.read()}")
        self.port = int(found.group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        if self._own:
            self._own.cleanup()

    def stop(self, sig=signal.SIGINT):
        """Ends it; its exit code and what it said on stderr."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def ask(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Status, headers and bytes. A dict is sent as JSON."""
        headers = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=None, status=200):
        got, _, text = self.ask(method, path, body, headers)
        assert got == status, (method, path, got, text)
        return json.loads(text)

    def create(self, body=None, **fields):
        return self.json("POST", "/v1/videos", {**(body or SMALL), **fields})

    def wait(self, video_id, states=("completed", "failed"), timeout=PATIENCE):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            video = self.json("GET", f"/v1/videos/{video_id}")
            if video["status"] in states:
                return video
            time.sleep(0.02)
        raise AssertionError(f"{video_id} did not become {states}: {video}")

    def run_until(self, stage, body):
        """Creates videos until one is seen at `stage`: where this process was kept waiting, one may have ended before it was looked at."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            video = self.create(body)
            while video["status"] in ("queued", "in_progress"):
                if video["stage"] == stage:
                    return video["id"]
                time.sleep(0.02)
                video = self.json("GET", f"/v1/videos/{video['id']}")
        raise AssertionError(f"no video was seen at {stage}: {video}")

    def metric(self, name):
        text = self.ask("GET", "/metrics")[2].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M).group(1))


def multipart(fields, files=(), boundary="xyz-boundary"):
    """Content type and body of a form."""
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, filename, content in files:
        body += (f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
                 "Content-Type: application/octet-stream\r\n\r\n").encode() + content + b"\r\n"
    return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body + f"--{boundary}--\r\n".encode()


def run(tests):
    """Runs every test_… of a module's globals, or those named on the command line."""
    import sys
    wanted = sys.argv[1:]
    for name, test in sorted(tests.items()):
        if name.startswith("test_") and (not wanted or name in wanted):
            began = time.monotonic()
            test()
            print(f"{name}: passed in {time.monotonic() - began:.1f} s", flush=True)
