"""Which compiled program answers a batch, and which grammar constrains each of its rows?

Evaluators and successive questions share both: a program is compiled once for each length and
method, a grammar's tables are computed once for each length.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.config import decode_method
from pgjax.distributed import mesh as mesh_lib, processes, sharding
from pgjax.inference import decode as decode_lib, grammar as grammar_lib


class Settings(NamedTuple):
  """How answers are decoded."""

  decode: str  # A method of config/decode_method.py.
  max_decode_len: int
  grammar: str | None = None  # A grammar of inference/grammar.py.
  seed: int = 0  # Of methods that sample.


class Decoders:
  """The programs of one model on one mesh."""

  def __init__(self, model: Any, leaves: Any, mesh: Any, param_places: Any, tokenizer: Any):
    self._model, self._mesh, self._places, self._tokenizer = model, mesh, param_places, tokenizer
    self._readable = sharding.for_model(leaves, mesh)
    self._program, self._masks = (
      functools.cache(self._new_program),
      functools.cache(self._new_masks),
    )

  def of(
    self, settings: Settings
  ) -> Callable[[Any, Mapping[str, jax.Array], Sequence[Mapping[str, Any]]], decode_lib.Decoded]:
    """f(params, batch on the mesh, this process's examples) -> Decoded.

    f compiles at its first call. Raises UserError for an unknown method or grammar.
    """
    method = decode_method.parse(settings.decode, "decode")
    length = settings.max_decode_len
    masks = self._masks(settings.grammar, length) if settings.grammar else None
    run = self._program(length, method)
    key = jax.random.key(settings.seed) if method.kind == "sample" else None

    def decoded(params, arrays, examples):
      if masks is None:
        return run(params, arrays, key)
      tables, numbers = masks.of(examples)
      grammar_B = np.zeros(len(mesh_lib.local_rows(arrays["_mask"])), np.int32)
      grammar_B[: len(numbers)] = numbers
      constrained = mesh_lib.global_batch({"_grammar": grammar_B}, self._mesh)
      return run(params, {**arrays, **constrained}, key, tables)

    return decoded

  def _new_program(self, length, method):
    fixed = dict(eos=self._tokenizer.eos, readable=self._readable)
    return decode_lib.jitted(
      self._model, self._mesh, self._places, max_decode_len=length, method=method, **fixed
    )

  def _new_masks(self, grammar, length):
    parsed, size = grammar_lib.parse(grammar), self._model.llm_config.vocab_size
    place = functools.partial(jax.device_put, device=mesh_lib.replicated(self._mesh))
    return grammar_lib.Masks(
      parsed, self._tokenizer, size, length, gather=processes.gather_objects, place=place
    )
