"""Which compiled program answers a batch, and which grammar binds each of its rows?

A program is compiled once for each length and method, a grammar worked out once for each length:
evaluators, and one question after another, share them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax.config import decode_method
from pgjax.distributed import mesh as mesh_lib, processes, sharding
from pgjax.inference import decode as decode_lib, grammar as grammar_lib


class Settings(NamedTuple):
  """How answers are decoded."""

  decode: str  # config/decode_method.py has the methods.
  max_decode_len: int
  grammar: str | None = None  # inference/grammar.py has the grammars.
  seed: int = 0  # Of methods that sample.


class Decoders:
  """The programs of one model on one mesh."""

  def __init__(self, model: Any, leaves: Any, mesh: Any, param_places: Any, tokenizer: Any):
    self._model, self._mesh, self._places, self._tokenizer = model, mesh, param_places, tokenizer
    self._readable = sharding.for_model(leaves, mesh)
    self._programs: dict[tuple[int, decode_method.Method], Callable] = {}
    self._masks: dict[tuple[str, int], _OnDevice] = {}

  def of(
    self, settings: Settings
  ) -> Callable[[Any, Mapping[str, jax.Array], Sequence[Mapping[str, Any]]], decode_lib.Decoded]:
    """f(params, batch on the mesh, the examples this process brought) -> Decoded.

    Nothing is compiled before f is called. Raises UserError for a method or grammar that is none.
    """
    method = decode_method.parse(settings.decode, "decode")
    masks = self._masks_of(settings) if settings.grammar else None
    run = self._program(settings.max_decode_len, method)
    key = jax.random.key(settings.seed) if method.kind == "sample" else None

    def decoded(params, arrays, examples):
      if masks is None:
        return run(params, arrays, key)
      tables, numbers = masks.of(examples)
      grammar_B = np.zeros(len(mesh_lib.local_rows(arrays["_mask"])), np.int32)
      grammar_B[: len(numbers)] = numbers
      bound = mesh_lib.global_batch({"_grammar": grammar_B}, self._mesh)
      return run(params, {**arrays, **bound}, key, tables)

    return decoded

  def _program(self, length, method):
    if (length, method) not in self._programs:
      self._programs[length, method] = decode_lib.jitted(
        self._model,
        self._mesh,
        self._places,
        max_decode_len=length,
        method=method,
        eos=self._tokenizer.eos,
        readable=self._readable,
      )
    return self._programs[length, method]

  def _masks_of(self, settings):
    wanted = settings.grammar, settings.max_decode_len
    if wanted not in self._masks:
      size, parsed = self._model.llm_config.vocab_size, grammar_lib.parse(settings.grammar)
      made = grammar_lib.Masks(parsed, self._tokenizer, size, settings.max_decode_len)
      self._masks[wanted] = _OnDevice(made, mesh_lib.replicated(self._mesh))
    return self._masks[wanted]


class _OnDevice:
  """A grammar's tables on the devices, sent again only when they are others."""

  def __init__(self, masks: grammar_lib.Masks, place: Any):
    self._masks, self._place, self._sent = masks, place, (None, None)

  def of(self, examples):
    tables, numbers = self._masks.of(examples, processes.gather_objects)
    if self._sent[0] is not tables:
      self._sent = tables, jax.device_put(tables, self._place)
    return self._sent[1], numbers
