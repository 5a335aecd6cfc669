"""How likely are texts? Sums of -log p over the target tokens (mask_loss)."""

import jax
import jax.numpy as jnp

from pgjax.distributed import mesh as mesh_lib, sharding
from pgjax.layers import cross_entropy, embedding
from pgjax.models import paligemma
from pgjax.params import tree as param_tree
from pgjax.training import step as step_lib


def jitted_nll(model, leaves, mesh, param_places, *, per_token=False):
  """`f(params, batch) -> (nll [B], count [B])`: sum of -log p over target tokens, their number.

  Without dropout and label smoothing. With per_token f returns -log p of each token [B, T], 0 for
  others than targets.
  """
  softcap, layout = model.llm_config.final_logits_softcap, step_lib.table_layout(mesh, param_places)
  options = cross_entropy.LossOptions(softcap=softcap, train_table=False, layout=layout)
  read = sharding.for_model(leaves, mesh)
  model = model.clone(constrain=mesh_lib.batch_constraint(mesh))

  def nll(params, batch):
    flat = param_tree.flatten(params)
    table = flat[paligemma.TOKEN_TABLE]
    x_BTD = embedding.embed(table, batch["text"][:, :-1], options.layout).astype(model.dtype)
    h_BTD = step_lib.hidden_states(model, {"params": read(flat)}, x_BTD, batch)
    mask_BT = batch["mask_loss"][:, 1:].astype(jnp.float32)
    _, nll_BT = cross_entropy.weighted_nll(h_BTD, table, batch["text"][:, 1:], mask_BT, options)
    return nll_BT if per_token else (jnp.sum(nll_BT, axis=1), jnp.sum(mask_BT, axis=1))

  place = mesh_lib.batch_sharding(mesh)
  return jax.jit(nll, in_shardings=(param_places, place), out_shardings=place)
