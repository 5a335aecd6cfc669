"""A program with attention in blocks has no array of queries x keys, forward or backward."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from pgjax.kernels import chunked
from pgjax.params import tree as param_tree
from pgjax.planning import hlo
from pgjax.training import step as step_lib


@pytest.fixture(autouse=True)
def blocks_of_8(monkeypatch):
  monkeypatch.setattr(chunked, "queries_of_a_block", lambda *sizes: 8)


def test_arrays_of_scores_are_recognised():
  text = "f32[2,4,1,58,29] bf16[29,58] f32[29,31] pred[2,29,29]{2,1,0} f32[58,29] s32[29] f32[]"
  assert hlo.score_arrays(text, 29, 29) == ["pred[2,29,29]"]
  assert hlo.score_arrays(text, 29, 29, groups=2) == [
    "f32[2,4,1,58,29]", "f32[58,29]", "pred[2,29,29]",
  ]  # fmt: skip


@pytest.mark.slow
def test_a_step_has_no_scores_of_all_queries():
  """With remat, a scan over layers, LoRA's frozen weights or all of them: the same program."""
  text_len = 27
  L, G = tiny.PATCHES + text_len, 2
  found = {}
  for name in ("plain", "chunked"):
    model = tiny.model(attention=name, remat="mlp_out_saveable_chunked", dtype="bfloat16")
    values = param_tree.flatten(tiny.parameters(model))
    options = step_lib.loss_options(model, tiny.config())
    run = jax.jit(
      lambda trained, batch, model=model, options=options: step_lib.gradients(
        trained, {}, batch, jax.random.key(0), model=model, options=options, examples=2
      )
    )
    batch = jax.tree.map(jnp.asarray, tiny.batch(2, text_len))
    found[name] = hlo.score_arrays(run.lower(values, batch).compile().as_text(), L, L, G)
  assert found["plain"]
  assert not found["chunked"]
