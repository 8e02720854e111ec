"""Holds tools/plan_reader.py, which knows the plan format from its documentation only, against what the C++ library wrote.

    python3 plan_reader_test.py TOOLS_FOLDER GOLDEN_FOLDER
"""
import json
import pathlib
import sys
import tempfile
import unittest
import unittest.mock

TOOLS, GOLDEN = map(pathlib.Path, sys.argv[1:3])
sys.path.insert(0, str(TOOLS))
import plan_reader  # noqa: E402


class PlanReader(unittest.TestCase):
    fixtures = sorted(GOLDEN.glob("plan_v*.safetensors"))

    def test_there_are_fixtures(self):
        self.assertEqual([path.stem for path in self.fixtures], ["plan_v1_example", "plan_v1_tiles", "plan_v2_drift", "plan_v2_example", "plan_v2_tiles",
                                                                "plan_v3_bits", "plan_v3_drift", "plan_v3_example", "plan_v3_experts", "plan_v3_reuse", "plan_v3_tiles"])

    def test_masks_anchors_and_steps_are_those_of_the_library(self):
        for path in self.fixtures:
            plan = plan_reader.read_plan(path)
            self.assertEqual(plan_reader.dump(plan), path.with_suffix(".txt").read_text())
            self.assertTrue(plan.checksum_verified)

    def test_every_altered_byte_of_a_tensor_and_every_truncation_is_refused(self):
        for fixture in self.fixtures[0], self.fixtures[3], self.fixtures[8]:
            content, text = fixture.read_bytes(), fixture.with_suffix(".txt").read_text()
            data_begin, num_accepted = 8 + int.from_bytes(content[:8], "little"), 0
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "plan.safetensors"
                for at in range(data_begin, len(content)):
                    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
                    try:
                        self.assertEqual(plan_reader.dump(plan_reader.read_plan(path)), text)
                        num_accepted += 1
                    except plan_reader.PlanError:
                        pass
                    path.write_bytes(content[:at])
                    self.assertRaises(plan_reader.PlanError, plan_reader.read_plan, path)
            self.assertLess(num_accepted, 8, "only the padding behind the sections means nothing")

    def test_what_the_reader_does_not_know_is_refused_by_name(self):
        tensors, metadata = plan_reader.read_safetensors(GOLDEN / "plan_v3_example.safetensors")
        for change in {"required_features": ["teleportation"]}, {"step_reuse": ["forward", "teleport", "forward"]}, {"eight_bits": ["none", "text", "none"]}, {"step_reuse": []}, {"eight_bits": []}, {"head_precision": "e4m3"}:
            changed = metadata | {"plan": json.dumps(json.loads(metadata["plan"]) | change)}
            with unittest.mock.patch.object(plan_reader, "read_safetensors", lambda path: (tensors, changed)), \
                 unittest.mock.patch.object(plan_reader, "xxh3_128", lambda content: None):
                feature = change.get("required_features", list(change))[0]
                self.assertRaisesRegex(plan_reader.PlanError, feature, plan_reader.read_plan, "any")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
