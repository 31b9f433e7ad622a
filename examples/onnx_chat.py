# SPDX-License-Identifier: Apache-2.0
"""Continue a text with ONNX Runtime: python examples/onnx_chat.py build/NAME/onnx "def main(" 48

Needs numpy, onnxruntime and tokenizers, and nothing of prunec. Greedy, of so many tokens at most;
keys and values of the text so far are cached.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, prompt = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
end = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
cache = {
    value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), kinds[value.type])
    for value in session.get_inputs()
    if value.name.startswith("past_key_values.")
}
given = tokens = tokenizer.encode(prompt).ids
shown = tokenizer.decode(tokens)
print(shown, end="", flush=True)
for _ in range(int(sys.argv[3])):
    positions = np.arange(len(tokens) - len(given), len(tokens))[None]
    inputs = {"input_ids": np.array([given]), "position_ids": positions}
    inputs["attention_mask"] = np.ones((1, len(tokens)), np.int64)
    logits, *present = session.run(None, inputs | cache)
    cache = dict(zip(cache, present, strict=True))  # outputs are in the order of the inputs
    given = [int(logits[0, -1].argmax())]
    if given[0] in np.atleast_1d(end):
        break
    tokens = tokens + given
    text = tokenizer.decode(tokens)
    if not text.endswith("\ufffd"):  # a character may take several tokens
        print(text[len(shown) :], end="", flush=True)
        shown = text
print()
