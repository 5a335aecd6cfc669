"""vLLM on a CPU: answers from the folder of pgjax. It attends causally to the prompt.

python vllm_cpu.py FOLDER WORK: as hf.py; answers and the log-probabilities of the chosen tokens.
"""

import pathlib
import sys

import numpy as np
from PIL import Image
from vllm import LLM, SamplingParams


def main(path, work):
  """pgjax -> vLLM; logits are not given, so log-probabilities stand for them."""
  data = np.load(path / "inputs.npz")
  new = int(data["new"])
  model = LLM(model=str(path / "hf"), dtype="float32", max_model_len=256, enforce_eager=True)
  sampling = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, logprobs=1)
  questions = [
    dict(prompt_token_ids=prompt.tolist(), multi_modal_data=dict(image=Image.fromarray(image)))
    for image, prompt in zip(data["images"], data["prompts"], strict=True)
  ]
  outputs = [output.outputs[0] for output in model.generate(questions, sampling)]
  answers = np.array([output.token_ids for output in outputs])
  logp = [
    [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
    for output in outputs
  ]
  np.savez(work / "there.npz", logp=np.array(logp), answers=answers)


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:3]))
