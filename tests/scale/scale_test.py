#!/usr/bin/env python3
"""tests/scale/run on two ranks of the CPU, with small models: that it does what it says.

    scale_test.py BUILD_DIR
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

RUN = pathlib.Path(__file__).resolve().parent / "run"
BUILD = None


def scale(*arguments, cwd=None):
    return subprocess.run([sys.executable, RUN, "--device", "cpu", "--build", BUILD, *arguments],
                          cwd=cwd, capture_output=True, text=True, timeout=600)


class Scale(unittest.TestCase):
    def test_every_section(self):
        with tempfile.TemporaryDirectory() as folder:
            result = scale("--ranks", "2", cwd=folder)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
            lines = (pathlib.Path(folder) / "scale.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found = {}
        for row in rows:
            found.setdefault(row["section"], []).append(row)
            self.assertNotIn("problem", row)
        self.assertEqual(list(found),
                         ["contract", "verify", "losses", "dp", "cp", "ep", "kill"])
        self.assertGreater(found["contract"][0]["tests"], 20)
        self.assertEqual(found["verify"][0]["meshes"], 3)
        self.assertEqual(len(found["losses"]), 3)
        for section in ("dp", "cp", "ep"):
            one, two = found[section][:2]
            self.assertEqual((one["ranks"], two["ranks"]), (1, 2))
            self.assertAlmostEqual(two["share"], 100 * two["tflop_s"] / one["tflop_s"])
            self.assertIn({"dp": "dp", "cp": "cp", "ep": "ep"}[section], two["wire_bytes"])
        self.assertGreater(found["cp"][1]["sent_a_layer"], 0)
        self.assertGreaterEqual(found["ep"][1]["imbalance"], 1)
        killed, resumed = found["kill"]
        self.assertEqual((killed["exit_code"], resumed["ranks"]), (137, 1))
        self.assertLess(killed["seconds"], 10)
        # The table comes last, a line a row between its head and the verdict.
        *_, head = [i for i, line in enumerate(result.stdout.splitlines()) if "tokens/s" in line]
        self.assertEqual(len(result.stdout.splitlines()) - head, len(rows) + 2)
        self.assertIn("all exact", result.stdout.splitlines()[-1])

    def test_eight_ranks(self):
        with tempfile.TemporaryDirectory() as folder:
            result = scale("--ranks", "8", "losses", "ep", cwd=folder)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_what_cannot_be_is_refused(self):
        for arguments in (["--ranks", "3"], ["speed"]):
            result = scale(*arguments)
            self.assertEqual(result.returncode, 2, result.stdout)


if __name__ == "__main__":
    BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
