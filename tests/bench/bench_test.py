#!/usr/bin/env python3
"""sluice-bench's interface: exit codes, the JSON lines, and rates that follow from the times.

    bench_test.py PATH_OF_SLUICE_BENCH [PATH_OF_ITS_AVX2_TWIN]
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BENCH = None
AVX2_BENCH = None


def bench(*arguments, program=None, device="cpu"):
    command = [program or BENCH, "--device", device, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Bench(unittest.TestCase):
    def test_json_has_one_object_a_line(self):
        result = bench("--json", "--ops", "norm,adamw", "--threads", "1")
        self.assertEqual(result.returncode, 0, result.stderr)
        norm, adamw, ceilings = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([norm["op"], adamw["op"], ceilings["op"]], ["norm", "adamw", "ceilings"])
        for key in ("B", "T", "D", "threads", "fwd_ms", "bwd_ms", "fwdbwd_ms", "tb_s", "of_copy",
                    "fwd_of_copy", "bwd_of_copy"):
            self.assertGreater(norm[key], 0, key)
        self.assertTrue(norm["fwd_p10_ms"] <= norm["fwd_ms"] <= norm["fwd_p90_ms"])
        self.assertNotIn("bwd_ms", adamw)
        # Seven floats a parameter, in the time of the one pass.
        expected = 28e-12 * adamw["n"] / (1e-3 * adamw["fwd_ms"])
        self.assertAlmostEqual(adamw["tb_s"] / expected, 1, places=9)
        for line in (norm, adamw):
            self.assertAlmostEqual(line["of_copy"], line["tb_s"] / line["copy_tb_s"], places=9)
        self.assertGreater(ceilings["first"]["tb_s"], 0)
        self.assertGreater(ceilings["last"]["tflops"], 0)

    def test_a_step_has_its_keys(self):
        small = pathlib.Path(__file__).parents[2] / "configs/small/hybrid.yaml"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(small, pathlib.Path(folder) / "hybrid-130m.yaml")
            result = bench("--json", "--ops", "step", "--models", "hybrid-130m",
                           "--configs", folder)
        self.assertEqual(result.returncode, 0, result.stderr)
        step = json.loads(result.stdout.splitlines()[0])
        self.assertEqual((step["op"], step["model"], step["B"], step["T"]),
                         ("step", "hybrid-130m", 1, 512))
        for key in ("step_ms", "peak_gib", "mfu", "first_step_s"):
            self.assertGreater(step[key], 0, key)
        self.assertAlmostEqual(step["tok_s"] * step["step_ms"] / 512e3, 1, places=9)

    def test_table(self):
        result = bench("--ops", "norm", "--threads", "1")
        self.assertEqual(result.returncode, 0, result.stderr)
        head, row, ceilings = result.stdout.splitlines()
        self.assertTrue(head.startswith("op") and row.startswith("norm"))
        self.assertIn("1 threads", ceilings)

    def test_gpu(self):
        result = bench("--json", "--ops", "norm", device="cuda")
        if result.returncode == 2:
            self.skipTest(result.stderr.strip())
        self.assertEqual(result.returncode, 0, result.stderr)
        *norms, ceilings = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([norm["D"] for norm in norms], [2048, 4096, 2048, 4096])
        for norm in norms:
            self.assertEqual(norm["dtype"], "bf16")
            # A host that starts kernels without waiting loses little.
            self.assertGreater(norm["wall_ms"], 0.8 * norm["fwdbwd_ms"])
            self.assertTrue(0.05 < norm["of_copy"] < 1.05, norm)
        self.assertGreater(ceilings["first"]["tflops"], 0)

    def test_the_twin_runs_clones_without_avx512(self):
        if AVX2_BENCH is None:
            self.skipTest("built without it")
        result = bench("--json", "--ops", "norm", program=AVX2_BENCH)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn(json.loads(result.stdout.splitlines()[-1])["clones"], ("x86-64-v3", "x86-64"))

    def test_bad_usage_leaves_with_2(self):
        result = bench("--ops", "nrom")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertIn("did you mean 'norm'", result.stderr)
        self.assertIn("gated_norm", result.stderr)
        result = bench("--ops", "step", "--models", "mamba-131m")
        self.assertIn("did you mean 'mamba-130m'", result.stderr)
        for arguments in (["--opps", "norm"], ["--ops"], ["--threads", "0"], ["norm"],
                          ["--device", "tpu"], ["--precision", "f16"], ["--precision", "bf16"],
                          ["--plain"]):
            self.assertEqual(bench(*arguments).returncode, 2, arguments)

    def test_help_leaves_with_0(self):
        result = bench("--help")
        self.assertEqual(result.returncode, 0)
        self.assertIn("--ops", result.stdout)


if __name__ == "__main__":
    BENCH = sys.argv.pop(1)
    AVX2_BENCH = sys.argv.pop(1) if len(sys.argv) > 1 else None
    unittest.main()
