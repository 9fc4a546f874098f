// A gate in JavaScript, run by QuickJS: the candidate's proxy has to answer 200 for `/`.

import { send } from "sluice:gate/probe@0.1.0";

const SCHEMA = {
  type: "object",
  additionalProperties: false,
  properties: { target: { type: "string" }, path: { type: "string", pattern: "^/" } },
};

export const evaluator = {
  describe() {
    return {
      name: "js-quickjs",
      version: "0.1.0",
      summary: "One request that has to be answered with 200",
      settingsSchema: JSON.stringify(SCHEMA),
    };
  },

  validate() {
    return [];
  },

  evaluate(settings) {
    const { target = "candidate/proxy", path = "/" } = JSON.parse(settings);
    const request = { target, method: "GET", path, headers: [], body: new Uint8Array(), options: [] };
    const [answer] = send([request], 1);
    if (answer.tag === "err") {
      // An uncaught error is no verdict, and its text is in the promotion's evidence.
      throw new Error(`${answer.val.kind}: ${answer.val.message}`);
    }
    const { status } = answer.val;
    return status === 200
      ? { tag: "pass", val: { code: "AnswersOk", message: `${target}${path} answers 200` } }
      : { tag: "fail", val: { code: "UnexpectedStatus", message: `${target}${path} answers ${status}` } };
  },
};
