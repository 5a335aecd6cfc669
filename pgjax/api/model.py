"""What does a checkpoint answer, and how likely are given answers?

Answers are bit-identical to those of pgjax.predict, likelihoods to the perplexity evaluator's.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pgjax import cache_dir
from pgjax.api import arguments
from pgjax.api.answer import Answer
from pgjax.config import schema
from pgjax.data import loader as loader_lib, prefix_lm
from pgjax.data.loader import Layout, Loader
from pgjax.data.sources import memory
from pgjax.distributed import mesh as mesh_lib, processes, sharding
from pgjax.errors import UserError
from pgjax.evaluation import likelihood
from pgjax.inference import engine
from pgjax.inference.decoder_cache import Settings


@arguments.named_as_in_python()
def load(
  ckpt: str | os.PathLike,
  *,
  dtype: str | None = None,
  quantize: str | None = None,
  step: int | None = None,
  ema: bool = True,
  base: str | os.PathLike | None = None,
  weights: str | None = None,
  devices: int | None = None,
  mesh: str | list | None = None,
  resize: str | None = None,
) -> "Model":
  """Reads a checkpoint onto the devices of this machine.

  Args:
    ckpt: any that the commands take: a workdir or step folder, an .npz, a Hugging Face or PEFT
      folder, a name such as "pt_3b_224", a hub id.
    dtype: "float32" or "bfloat16", of the computation; without it the checkpoint's own. With
      "bfloat16", float32 parameters are also stored in it.
    quantize: "int8" or "nf4" stores the matrices in fewer bits.
    step: which step of a workdir; without it the newest.
    ema: use a run's EMA weights, if it has them.
    base: with an adapter in PEFT's format, the model it was trained on, if not the one it names.
    weights: which file or index to read, where a folder has several sets of weights.
    devices: how many of this machine's devices to use; without it all.
    mesh: how they share the work, as config.mesh, such as "tensor" (docs/meshes.md).
    resize: "bicubic", "antialias" or "bilinear" images; without it the checkpoint's own.
  """
  name = arguments.checkpoint(ckpt, step, ema, quantize, base, weights)
  base = None if base is None else os.fspath(base)
  if dtype not in (None, *schema.DTYPES):
    raise UserError(f"dtype={dtype!r} must be one of {', '.join(schema.DTYPES)}.")
  cache_dir.use_compilation_cache()
  arguments.check("resize", resize, str | None, "bicubic, antialias or bilinear")
  arguments.check("mesh", mesh, str | list | tuple | None, "the name of a preset, or its axes")
  choices = dict(base=base, weights=weights, resize=resize, mesh=mesh)
  opened = engine.open_checkpoint(name, step, quantize=quantize, ema=ema, dtype=dtype, **choices)
  processes.join()
  arguments.check_number("devices", devices, 1, len(jax.devices()))
  chosen = mesh_lib.make_mesh(opened.config.mesh, jax.devices()[:devices])
  return Model(engine.Engine(opened, chosen))


class Model:
  """A loaded checkpoint (see `load`); programs are compiled at their first use and reused.

  Attributes:
    checkpoint: the file or folder it was read from.
    settings: the defaults of decoding, from the config of its run.
    notes: remarks on how it was read, such as how its images are resized.
  """

  def __init__(self, answerer: engine.Engine):
    self._answerer, self._likelihood, opened = answerer, None, answerer.opened
    self.checkpoint, self.settings, self.notes = opened.source.path, opened.settings, opened.notes

  def __repr__(self):
    mesh = self._answerer.mesh
    return f"<pgjax model {self.checkpoint} on {mesh.size} x {mesh.devices.flat[0].device_kind}>"

  @arguments.named_as_in_python()
  def answer(
    self,
    image: Any,
    prompt: str,
    *,
    decode: str | None = None,
    max_decode_len: int | None = None,
    grammar: str | None = None,
    seed: int = 0,
  ) -> Answer:
    """Answers one prompt; defaults and meanings are those of pgjax.predict's flags.

    image: a path, the bytes of a file, a PIL image, a uint8 array [height, width, 3], or a list of
    them for a checkpoint with several images a prompt.
    """
    settings = self._settings(decode, max_decode_len, grammar, seed)
    return self._answers([(image, prompt)], "this question", settings, 1)[0]

  @arguments.named_as_in_python()
  def answer_batch(
    self, questions: Sequence[tuple[Any, str]], *, batch_size: int | None = None, **settings: Any
  ) -> list[Answer]:
    """Answers many pairs (image, prompt), in order; decode, grammar etc. are those of `answer`."""
    arguments.check("questions", questions, list | tuple, "a list of pairs (image, prompt)")
    for i, pair in enumerate(questions):
      if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise UserError(f"questions[{i}] must be a pair (image, prompt), not {pair!r:.80}.")
    arguments.check_number("batch_size", batch_size, 1)
    size = batch_size or self._answerer.opened.batch_size
    return self._answers(questions, "questions[{}]", self._settings(**settings), size)

  def logprobs(self, image: Any, prompt: str, answers: Sequence[str | Answer]) -> list[float]:
    """Log-probabilities of whole answers: of texts with <eos>, or of the tokens of an Answer."""
    return [sum(logps) for logps in self.token_logprobs(image, prompt, answers)]

  @arguments.named_as_in_python()
  def token_logprobs(
    self, image: Any, prompt: str, answers: Sequence[str | Answer]
  ) -> list[list[float]]:
    """As `logprobs`, of each token."""
    arguments.check("answers", answers, list | tuple, "a list of texts or of Answers")
    for i, answer in enumerate(answers):
      arguments.check(f"answers[{i}]", answer, str | Answer, "a text or an Answer")
    self._checked([(image, prompt)], "this question", self.settings)
    tokenizer, pack = self._answerer.opened.tokenizer, prefix_lm.for_likelihood
    of_text = lambda text: [*tokenizer.encode(text), tokenizer.eos]  # noqa: E731
    ids = [a.tokens if isinstance(a, Answer) else of_text(a) for a in answers]
    longest = max((pack(tokenizer, prompt, tokens, 1).num_tokens for tokens in ids), default=2)
    length = 1 << max(4, (longest - 2).bit_length())  # A power of two, so that few are compiled.
    rows = [pack(tokenizer, prompt, tokens, length).arrays for tokens in ids]
    nll = self._nll([dict(row, image=image, prefix=prompt) for row in rows], length)
    return [(-a[row["mask_loss"][1:] == 1]).tolist() for a, row in zip(nll, rows, strict=True)]

  def _nll(self, rows: list[dict[str, Any]], text_len: int) -> list[np.ndarray]:
    """-log p of each token of each row."""
    answerer, opened = self._answerer, self._answerer.opened
    if self._likelihood is None:
      shardings = sharding.shardings_of(answerer.params)
      self._likelihood = likelihood.jitted_nll(
        answerer.model, answerer.leaves, answerer.mesh, shardings, per_token=True
      )
    layout = Layout(opened.config.res, text_len, opened.config.num_frames, for_training=True)
    part = loader_lib.Part("answers", memory.InMemory(rows, ["this question"] * len(rows)), 1.0)
    loader = Loader(part, opened.pp, opened.tokenizer, layout, 0, cache_bytes=64 << 20)
    nll = []
    for batch in answerer.batches(loader, opened.batch_size):
      nll_BT = np.asarray(self._likelihood(answerer.params, batch.arrays))
      nll += list(nll_BT[: len(batch.rows)])
    return nll

  def _settings(self, decode=None, max_decode_len=None, grammar=None, seed=0) -> Settings:
    for name, value in dict(decode=decode, grammar=grammar).items():
      arguments.check(name, value, str | None, "text; see docs/decoding.md")
    arguments.check_number("max_decode_len", max_decode_len, 1)
    arguments.check_number("seed", seed, 0)
    own = self.settings
    decode = own.decode if decode is None else decode
    return Settings(decode, max_decode_len or own.max_decode_len, grammar, seed or 0)

  def _checked(self, pairs, where, settings) -> tuple[Loader, list[tuple[int, int]]]:
    """The questions, ready for this model, and the sizes of their first images."""
    names = [where.format(i) for i in range(len(pairs))]
    for name, (_, prompt) in zip(names, pairs, strict=True):
      arguments.check(f"{name}: prompt", prompt, str, "text")
    rows = [dict(image=image, prefix=prompt) for image, prompt in pairs]
    questions = engine.loader(self._answerer.opened, memory.InMemory(rows, names))
    return questions, engine.check(self._answerer.opened, questions, settings)

  def _answers(self, pairs, where, settings, batch_size) -> list[Answer]:
    questions, sizes = self._checked(pairs, where, settings)
    opened, results = self._answerer.opened, []
    answers = self._answerer.answers(questions, settings, batch_size)
    for (image, _), size, answer in zip(pairs, sizes, answers, strict=True):
      prompt, text, tokens, logps = answer
      objects = engine.objects_of(opened, answer).objects
      ended = tokens[-1:] == [opened.tokenizer.eos]
      results.append(Answer(prompt, text, tuple(tokens), tuple(logps), ended, size, image, objects))
    return results
