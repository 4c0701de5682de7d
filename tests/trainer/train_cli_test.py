#!/usr/bin/env python3
"""Training through the binary and real mpirun: equal bits over ranks, stops, deaths, bad input.

    train_cli_test.py PATH_OF_SLUICE SOURCE_DIR
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SLUICE = None
CONFIG = None


def run(*arguments, cwd, ranks=0):
    launcher = ["mpirun", "-np", str(ranks)] if ranks else []
    return subprocess.run([*launcher, SLUICE, *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, timeout=300)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def wait_for_steps(folder, steps, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        file = folder / "metrics.jsonl"
        if file.exists() and file.read_text().count("\n") >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"the run did not reach step {steps}")


def ranks_of(process):
    """The process ids of a job's ranks, in order: mpirun names the rank in their environment."""
    ranks = {}
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    for child in map(int, children.stdout.split()):
        variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        number = [v.split(b"=")[1] for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if number:
            ranks[int(number[0])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def is_running(process):
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie only waits for its parent
    except FileNotFoundError:
        return False


class Train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        (cls.root / "stores").mkdir()
        random.seed(1)
        words = ["sluice", "gate", "water", "state", "chunk", "passes", "on", "the", "a", "slow"]
        for number in range(120):
            text = " ".join(random.choice(words) for _ in range(random.randint(5, 80)))
            (cls.root / f"text{number}.txt").write_text(text)
        built = run("data", "build", ".", "--suffix", ".txt", "--out", "stores/text.h5", "--valid",
                    "stores/text-valid.h5", "--valid-fraction", "0.1", cwd=cls.root)
        assert built.returncode == 0, built.stderr

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def train(self, name, *overrides, ranks=0):
        return run("train", CONFIG, *overrides, "--run", name, cwd=self.root, ranks=ranks)

    def start(self, name, *overrides, ranks):
        return subprocess.Popen(
            ["mpirun", "-np", str(ranks), SLUICE, "train", CONFIG, "--run", name, *overrides],
            cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def test_ranks_give_equal_bits(self):
        for ranks in (0, 2, 4):
            result = self.train(f"equal{ranks}", "train.steps=50", ranks=ranks)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        expected = losses(self.root / "equal0")
        self.assertEqual(len(expected), 50)
        self.assertLess(expected[50], 0.8 * expected[1])
        hashes = []
        for ranks in (0, 2, 4):
            folder = self.root / f"equal{ranks}"
            self.assertEqual(losses(folder), expected, f"{ranks} ranks")
            score = run("eval", folder, "--data", "stores/text-valid.h5", "--json", cwd=self.root)
            self.assertEqual(score.returncode, 0, score.stderr)
            hashes.append(json.loads(score.stdout)["loss"])
        self.assertEqual(len(set(hashes)), 1, hashes)

    def test_a_signal_stops_all_ranks_and_another_number_of_them_goes_on(self):
        whole = self.train("whole", "train.steps=400")
        self.assertEqual(whole.returncode, 0, whole.stderr)
        process = self.start("stopped", "train.steps=400", ranks=2)
        wait_for_steps(self.root / "stopped", 5, process)
        os.kill(ranks_of(process)[1], signal.SIGUSR1)  # one rank's request is everybody's
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, output)
        done = len(losses(self.root / "stopped"))
        self.assertLess(done, 400)
        again = self.train("stopped", "train.steps=400", ranks=4)
        self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
        self.assertIn(f"at step {done}", again.stdout)
        self.assertEqual(losses(self.root / "stopped"), losses(self.root / "whole"))

    def kill_a_rank(self, name, victim, *overrides):
        """Kills one of 4 ranks while the others wait for it, and expects the job to be gone."""
        process = self.start(name, "train.steps=100000", "checkpoint.every=5", *overrides, ranks=4)
        wait_for_steps(self.root / name, 12, process)
        ranks = ranks_of(process)
        self.assertEqual(len(ranks), 4)
        os.kill(ranks[victim], signal.SIGSTOP)
        time.sleep(0.3)  # a step takes less: the others are in the exchange that it is missing from
        os.kill(ranks[victim], signal.SIGKILL)
        start = time.monotonic()
        output, _ = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 137, output)
        while any(map(is_running, ranks)) and time.monotonic() - start < 5:
            time.sleep(0.05)  # mpirun does not wait for those that it kills
        self.assertEqual([rank for rank in ranks if is_running(rank)], [])
        self.assertLess(time.monotonic() - start, 5, output)

    def test_a_killed_rank_ends_the_job_and_the_run_goes_on(self):
        for victim, layout in ((0, ()), (3, ("parallel.cp=2", "parallel.ep=2"))):
            name = f"killed{victim}"
            self.kill_a_rank(name, victim, *layout)
            again = self.train(name, "train.steps=20", ranks=2)
            self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
            self.assertEqual(list(losses(self.root / name)), list(range(1, 21)))

    def test_bad_input_leaves_with_its_code_and_one_message(self):
        cases = [
            (2, ["model.mamba2.heads_dim=8"], "head_dim"),
            (2, ["train.global_batch=7"], "global_batch"),
            (2, ["parallel.cp=3"], "nearest first: dp"),
            (2, ["parallel.ep=3"], "nearest first: dp"),
            (2, ["parallel.cp=2", "train.seq_len=1"], "at most one rank per token"),
            (2, ["model.mamba2.chunk=0"], "chunk"),
            (2, ["model.moe.top_k=9"], "top_k"),
            (2, ["model.attention.heads=5"], "heads"),
            (2, ["model.vocab_size=100"], "vocab"),
            (74, ["data.train=stores/absent.h5"], "absent.h5"),
            (65, ["data.train=text0.txt"], "text0.txt"),
        ]
        for ranks in (0, 2):
            for code, overrides, part in cases:
                result = self.train("bad", *overrides, ranks=ranks)
                self.assertEqual(result.returncode, code, f"{overrides}: {result.stderr}")
                said = [line for line in result.stderr.splitlines() if "sluice: error" in line]
                self.assertEqual(len(said), 1, result.stderr)
                self.assertIn(part, result.stderr)
                self.assertFalse((self.root / "bad" / "metrics.jsonl").exists())

    def test_every_axis_trains_and_any_layout_goes_on(self):
        constant = "schedule.type=constant"  # over however many steps
        one = self.train("axes1", "train.steps=12", constant)
        self.assertEqual(one.returncode, 0, one.stderr)
        expected = losses(self.root / "axes1")
        by_heads = "each with 2 of 4 query heads and 1 of 2 key-value heads"
        layouts = [(2, ["parallel.cp=2"], ["mesh dp 1 x ep 1 x cp 2", by_heads]),
                   (3, ["parallel.cp=3"], ["mesh dp 1 x ep 1 x cp 3", "on a ring over 3 ranks"]),
                   (4, ["parallel.ep=2", "parallel.cp=2", "parallel.zero=2"],
                    ["mesh dp 2 x ep 2 x cp 2", by_heads])]
        for ranks, layout, said in layouts:
            name = f"axes{ranks}"
            result = self.train(name, "train.steps=6", constant, *layout, ranks=ranks)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            for text in said:
                self.assertIn(text, result.stdout)
            again = self.train(name, "train.steps=12", constant)  # on one rank
            self.assertEqual(again.returncode, 0, again.stdout + again.stderr)
            self.assertIn("at step 6", again.stdout)
            for step, loss in losses(self.root / name).items():
                # A rounding error may send a token to another expert.
                self.assertAlmostEqual(loss / expected[step], 1, places=3, msg=f"step {step}")

    def test_carried_states_go_on_on_another_number_of_ranks(self):
        # On one rank and on two a step has the same bits, so a state of another row would show.
        settings = ["data.carry_state=true", "model.stack.pattern=M-S", "schedule.type=constant"]
        whole = self.train("carried", "train.steps=10", *settings)
        self.assertEqual(whole.returncode, 0, whole.stderr)
        expected = losses(self.root / "carried")
        for first, then in ((1, 2), (2, 1), (2, 4)):
            name = f"carried{first}{then}"
            for steps, ranks in ((5, first), (10, then)):
                result = self.train(name, f"train.steps={steps}", *settings, ranks=ranks)
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            self.assertIn("at step 5", result.stdout)
            self.assertEqual(losses(self.root / name), expected, name)

    def test_verify_says_whether_all_holds(self):
        # A loss that is not a number equals nothing.
        for z_loss, code in (("0.001", 0), ("1e308", 70)):
            result = run("verify", CONFIG, "model.stack.pattern=E", f"model.moe.z_loss={z_loss}",
                         "--json", cwd=self.root, ranks=2)
            self.assertEqual(result.returncode, code, result.stdout + result.stderr)
            verdict = json.loads(result.stdout)
            self.assertEqual(verdict["holds"], code == 0)
            self.assertEqual(verdict["stack"], "EE")
            checked = [(check["mesh"]["dp"], check["mesh"]["ep"], check["mesh"]["cp"],
                        check["zero"], check["dtype"]) for check in verdict["layouts"]]
            self.assertEqual(checked, [(*mesh, zero, dtype)
                                       for mesh in ((2, 1, 1), (2, 2, 1), (1, 1, 2))
                                       for zero, dtype in ((0, "f64"), (1, "f64"), (2, "f64"),
                                                           (0, "f32"))])
            for check in verdict["layouts"]:
                self.assertEqual(check["holds"], code == 0, check)

    def test_experts_that_do_not_divide_over_their_ranks(self):
        result = self.train("bad", "model.stack.pattern=ME", "model.moe.experts=3",
                            "model.moe.top_k=1", "parallel.ep=2", ranks=2)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("3 experts do not divide over ep 2", result.stderr)
        self.assertFalse((self.root / "bad" / "metrics.jsonl").exists())

    def start_differently(self, first, second):
        """One rank each of two command lines; the exit code, what was said, and the time."""
        start = time.monotonic()
        result = subprocess.run(["mpirun", "-np", "1", *first, ":", "-np", "1", *second],
                                cwd=self.root, capture_output=True, text=True, timeout=60)
        return result, time.monotonic() - start

    def test_ranks_with_other_configurations_or_programs_do_not_start(self):
        command = [SLUICE, "train", CONFIG, "--run", "unequal"]
        result, seconds = self.start_differently(
            command, [*command, "train.seq_len=32", "optimizer.lr=0.5"])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertLess(seconds, 5)  # mpirun's own start and end are part of it
        self.assertEqual(result.stderr.count("sluice: error"), 1, result.stderr)
        self.assertRegex(result.stderr, r"train.seq_len: \d+ on rank 0; 32 on rank 1")
        self.assertRegex(result.stderr, r"optimizer.lr: \S+ on rank 0; 0.5 on rank 1")
        other = self.root / "other-sluice"
        other.write_bytes(pathlib.Path(SLUICE).read_bytes() + b"x")
        other.chmod(0o755)
        result, _ = self.start_differently(command, [str(other), *command[1:]])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn("program.executable: ", result.stderr)
        self.assertFalse((self.root / "unequal").exists())
        verify = [SLUICE, "verify", CONFIG]
        result, seconds = self.start_differently(verify, [*verify, "model.mlp.hidden=40"])
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertLess(seconds, 5)
        self.assertEqual(result.stderr.count("sluice: error"), 1, result.stderr)
        self.assertIn("model.mlp.hidden: 48 on rank 0; 40 on rank 1", result.stderr)

    def test_an_output_path_that_cannot_be_written(self):
        (self.root / "occupied").write_text("a file")
        result = self.train("occupied/run")
        self.assertEqual(result.returncode, 74, result.stderr)
        self.assertIn("occupied", result.stderr)

    def test_plan_allocates_nothing_and_agrees_with_the_run(self):
        result = run("plan", CONFIG, "--json", cwd=self.root)
        plan = json.loads(result.stdout)
        self.assertTrue(plan["fits"])
        trained = self.train("planned", "train.steps=1")
        self.assertEqual(trained.returncode, 0, trained.stderr)
        record = json.loads((self.root / "planned" / "metrics.jsonl").read_text())
        measured = record["memory_gib"] * 2**30
        self.assertAlmostEqual(plan["memory_per_rank"]["total"] / measured, 1, places=6)
        self.assertEqual(sum(plan["params"]["by_kind"].values()), plan["params"]["total"])

    def test_generation_is_a_function_of_the_seed(self):
        trained = self.train("spoken", "train.steps=3")
        self.assertEqual(trained.returncode, 0, trained.stderr)
        texts = []
        for seed in (1, 1, 2):
            result = run("generate", "spoken", "--prompt", "the ", "--tokens", 40, "--seed", seed,
                         "--json", cwd=self.root)
            self.assertEqual(result.returncode, 0, result.stderr)
            texts.append(json.loads(result.stdout)["tokens"])
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])


if __name__ == "__main__":
    SLUICE = os.path.abspath(sys.argv.pop(1))
    CONFIG = os.path.join(os.path.abspath(sys.argv.pop(1)), "configs/small/hybrid.yaml")
    unittest.main()
