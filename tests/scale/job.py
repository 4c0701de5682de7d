"""Jobs of several ranks of sluice, as a user starts them: by mpirun, in a folder of their own."""
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIMIT = 120  # seconds of a run


class Failure(Exception):
    """A command did not do what it should have."""


def said(text):
    """What a failed command has to say, in one line: its errors, or how it ended."""
    lines = text.strip().splitlines()
    errors = [line for line in lines if "error" in line.lower() or "FAILED" in line]
    return "; ".join((errors or lines)[:4])


def is_running(process):
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie only waits for its parent
    except FileNotFoundError:
        return False


def ranks_of(process):
    """The process ids of a job's ranks, in order: mpirun names the rank in their environment."""
    ranks = {}
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for child in map(int, children.stdout.split()):
        try:
            variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except FileNotFoundError:
            continue
        number = [v.split(b"=")[1] for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if number:
            ranks[int(number[0])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def kill(process, victims, ranks):
    """Kills some ranks of a job, and waits until all are gone; returns the job's exit code."""
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.02)  # mpirun does not wait for those that it kills
    return process.returncode


class Jobs:
    def __init__(self, build, folder, device):
        self.bin = build.resolve() / "bin"
        self.folder = pathlib.Path(folder)
        self.device = device
        if not (self.bin / "sluice").exists():
            raise SystemExit(f"{self.bin}/sluice is not there: build it, or give --build")

    def write_store(self, tokens):
        """One document, longer than any row."""
        letters = bytes(ord("a") + i % 26 for i in range(256))
        text = random.Random(1).randbytes(tokens).translate(letters)
        (self.folder / "text.txt").write_bytes(text)
        self.sluice("data", "build", "text.txt", "--out", "tokens.h5")

    def command(self, ranks, program, *arguments):
        """Ranks share all cores: mpirun must not pin each of them to one."""
        script = (f". {ROOT}/launch/environment.sh; "
                  'export OMPI_MCA_hwloc_base_binding_policy=none; exec "$@"')
        return ["bash", "-c", script, "bash", "mpirun", "-np", str(ranks), str(self.bin / program),
                *map(str, arguments)]

    def call(self, ranks, program, *arguments, limit=LIMIT):
        try:
            return subprocess.run(self.command(ranks, program, *arguments), cwd=self.folder,
                                  capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as expired:
            raise Failure(f"{program} did not end in {limit} s") from expired

    def sluice(self, *arguments):
        result = subprocess.run([self.bin / "sluice", *map(str, arguments)], cwd=self.folder,
                                capture_output=True, text=True, timeout=LIMIT)
        if result.returncode != 0:
            raise Failure(f"sluice {arguments[0]} left with {result.returncode}: "
                          f"{said(result.stderr)}")
        return result.stdout

    def plan(self, config, ranks, keys):
        return json.loads(self.sluice("plan", config, *keys, "--world", ranks, "--json"))

    def keys(self, keys):
        return [*keys, f"device={self.device}", "data.train=tokens.h5", "data.valid=''",
                "train.eval_every=0", "log.tensorboard=false"]

    def start(self, name, config, ranks, keys):
        command = self.command(ranks, "sluice", "train", config, "--run", name, *self.keys(keys))
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)

    def records(self, name):
        metrics = self.folder / name / "metrics.jsonl"
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        return [json.loads(line) for line in lines]

    def losses(self, name):
        return {record["step"]: record["loss"] for record in self.records(name)}

    def wait_for_steps(self, process, name, steps):
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            if len(self.records(name)) >= steps:
                return
            time.sleep(0.05)
        self.end(process)
        raise Failure(f"{name} did not come to step {steps}: {self.log_of(name)}")

    def log_of(self, name):
        return said((self.folder / f"{name}.log").read_text())

    def end(self, process):
        if process.poll() is None:
            ranks = ranks_of(process)
            kill(process, ranks, ranks)

    def first_steps(self, name, config, ranks, keys, steps):
        """The records of a run's first steps, and the memory in use. Nothing is saved."""
        keys = [*keys, "train.steps=1000000", "checkpoint.every=0"]
        process = self.start(name, config, ranks, keys)
        try:
            self.wait_for_steps(process, name, steps)
            used = self.used_gib(ranks)
        finally:
            self.end(process)
        return self.records(name)[:steps], used

    def whole_run(self, name, config, ranks, keys):
        process = self.start(name, config, ranks, keys)
        try:
            process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.end(process)
        if process.returncode != 0:
            raise Failure(f"{name} left with {process.returncode}: {self.log_of(name)}")
        return self.losses(name)

    def used_gib(self, ranks):
        """The most of the GPUs' memory in use; None on the CPU."""
        if self.device == "cpu":
            return None
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
        return max(map(float, used[:ranks])) / 1024


def count_gpus():
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return len(re.findall(r"^GPU \d", listed.stdout, re.MULTILINE))
