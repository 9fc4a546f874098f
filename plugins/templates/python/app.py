"""A gate in Python: the candidate's proxy has to answer 200 for `/`."""

import json

from wit_world import exports
from wit_world.exports import evaluator
from wit_world.imports import probe
from componentize_py_types import Err, Ok

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"target": {"type": "string"}, "path": {"type": "string", "pattern": "^/"}},
}


class Evaluator(exports.Evaluator):
    def describe(self) -> evaluator.Description:
        return evaluator.Description(
            name="python",
            version="0.1.0",
            summary="One request that has to be answered with 200",
            settings_schema=json.dumps(SCHEMA),
        )

    def validate(self, settings: str) -> list[evaluator.Problem]:
        return []

    def evaluate(self, settings: str) -> evaluator.Verdict:
        wanted = json.loads(settings)
        target, path = wanted.get("target", "candidate/proxy"), wanted.get("path", "/")
        request = probe.Request(target, "GET", path, [], b"", [])
        [answer] = probe.send([request], 1)
        match answer:
            case Ok(response) if response.status == 200:
                return evaluator.Verdict_Pass(evaluator.Reason("AnswersOk", f"{target}{path} answers 200"))
            case Ok(response):
                return evaluator.Verdict_Fail(
                    evaluator.Reason("UnexpectedStatus", f"{target}{path} answers {response.status}")
                )
            case Err(failure):
                # No verdict; its text is in the promotion's evidence.
                raise RuntimeError(f"{failure.kind}: {failure.message}")
