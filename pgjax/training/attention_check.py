"""Which attention does each tower of a run use, and is it right on the run's own devices?

Before the first step, `checked` compares output and gradients of each kernel with plain attention,
on random input with the run's head sizes, mask and dtype, and replaces what is wrong. Kernels of
norms, which are used beside those of attention, are compared and replaced with them.

Axes: B batch, T tokens, K key/value heads, G query heads per key/value head, H head size, D width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError, cut
from pgjax.kernels import choice
from pgjax.kernels.visible_keys import VisibleKeys
from pgjax.layers import attention, placement, residual
from pgjax.training import step_check

TOLERANCE = 0.02  # Of the norm of each array. Bfloat16 alone gives 0.004.
TOKENS = 1152  # At most; chunked attention has two blocks of them.
_BLOCK = 128  # Of tokens, in kernels: as many are left over as in the run.
_TOWERS = dict(llm="text tower", img="image tower")
_ARRAYS = ("output", "gradient of queries", "gradient of keys", "gradient of values", "norms")


class Trial(NamedTuple):
  """The sizes of one tower's attention, for the comparison; hashable."""

  T: int
  K: int
  G: int
  H: int
  dtype: str
  softcap: float
  masked: bool
  some_invalid: bool  # Images may be padding.
  width: int
  post: bool  # Branches have norms.
  gradients: bool = True  # Are compared, too.


def choices(model: Any, config: Any, mesh: Any) -> dict[str, choice.Choice]:
  """The implementation of each tower, by the tower's name in the config."""
  model = model.clone(constrain=mesh_lib.batch_constraint(mesh))
  patches, tokens = sizes(model, config)
  return model.attention_choices(patches, tokens, choice.device_of(mesh))


def sizes(model: Any, config: Any) -> tuple[int, int]:
  """(patches of an image, tokens of an example)."""
  patch = model.img_config.patch_size
  patches = (config.res // patch[0]) * (config.res // patch[1])
  return patches, patches * max(1, config.num_frames) + config.text_len


def described(chosen: Mapping[str, choice.Choice]) -> str:
  """For the summary of a run and for a plan."""
  return "; ".join(f"{_TOWERS[name]} {c.name} ({c.why})" for name, c in chosen.items())


def check_asked(model: Any, config: Any, mesh: Any) -> None:
  """Raises if a kernel for GPUs was asked for and fits no tower that it was asked for."""
  chosen, wanted = choices(model, config, mesh), dict(llm=model.llm_config, img=model.img_config)
  asked = {name: wanted[name].attention for name in chosen}
  for name in choice.KERNELS:
    towers = [tower for tower in chosen if asked[tower] == name]
    if towers and all(chosen[tower].name != name for tower in towers):
      why = "; ".join(f"{_TOWERS[tower]}: {chosen[tower].why}" for tower in towers)
      raise UserError(
        f'attention="{name}" fits no tower of this run on these devices ({why}). Take'
        ' config.attention="auto".'
      )


def checked(model: Any, config: Any, mesh: Any, log: Any) -> Any:
  """The model, with another implementation where the chosen one is wrong; each is logged.

  The step's other kernels are checked, too (step_check.py).
  """
  for tower, chosen in choices(model, config, mesh).items():
    if chosen.name == choice.PLAIN:
      continue
    with log.waiting(f"Comparing {chosen.name} with plain attention"):
      name, notes = _right(chosen.name, _trial(model, config, mesh, tower), mesh, _TOWERS[tower])
    model = _with(model, tower, name, notes, log.say)
  return step_check.checked(model, mesh, log)


def checked_forward(model: Any, config: Any, mesh: Any, say: Callable[[str], None]) -> Any:
  """As `checked`, for a model that is not trained: kernels for GPUs, without their gradients."""
  for tower, chosen in choices(model, config, mesh).items():
    if chosen.name in choice.KERNELS:
      trial = _trial(model, config, mesh, tower)._replace(gradients=False)
      model = _with(model, tower, *_right(chosen.name, trial, mesh, _TOWERS[tower]), say)
  return model


def _with(model, tower, name, notes, say):
  """The model with the implementation that is right; the notes say why it is another one."""
  for note in notes:
    say(note)
  if not notes:
    return model
  return model.clone(**{tower: dict(getattr(model, tower)) | dict(attention=name)})


def _right(name, trial, mesh, tower) -> tuple[str, list[str]]:
  """(the first implementation that is right, why it is not the one that was asked for)."""
  notes = []
  while name != choice.PLAIN and (trouble := _trouble(name, trial, mesh)):
    tried, name = name, _instead(name, trial, choice.device_of(mesh))
    kind = mesh.devices.flat[0].device_kind
    notes.append(f"On this {kind}, {tried} attention {trouble}: the {tower} uses {name} instead.")
  return name, notes


def _instead(name, trial, device):
  shape = choice.Shape(trial.T, trial.H, trial.dtype, trial.softcap, trial.masked)
  if name in (choice.FLASH, choice.CUDNN) and not choice.misfit(choice.TRITON, shape, device):
    return choice.TRITON
  long = trial.T >= choice.LONG
  return choice.CHUNKED if long and name != choice.CHUNKED else choice.PLAIN


def _trial(model, config, mesh, tower) -> Trial:
  patches, tokens = sizes(model, config)
  tensor, sequence = (placement.size_of(mesh, (axis,)) for axis in ("tensor", "sequence"))
  c = model.llm_config if tower == "llm" else model.img_config
  T = tokens if tower == "llm" else patches
  T = TOKENS - -T % _BLOCK if T > TOKENS else T
  T += -T % sequence
  heads, H = c.num_heads, c.width // c.num_heads
  if tower == "img":
    K = tensor if heads % tensor == 0 else 1
    return Trial(T, K * min(2, heads // K), 1, H, c.dtype_mm or model.dtype, 0.0, False, False,
                 c.width, False)  # fmt: skip
  copies = placement.copies_of_kv(tensor, heads, c.num_kv_heads)
  K = tensor if heads % tensor == 0 else 1
  G = heads // (c.num_kv_heads * copies)
  K *= min(2, heads // (G * K))  # Two of a device, if it has them.
  return Trial(T, K, G, c.head_dim, model.dtype, c.attn_logits_softcap, True,
               bool(config.num_frames), c.width, c.post_norms)  # fmt: skip


def _trouble(name, trial, mesh) -> str | None:
  """What is wrong with an implementation; None if nothing is."""
  everywhere = mesh_lib.replicated(mesh)

  def compared(errors, arrays):
    compare = jax.jit(functools.partial(errors, trial, mesh), out_shardings=everywhere)
    return [float(e) for e in compare(jax.device_put(arrays, everywhere))]

  try:
    found = compared(functools.partial(errors, name), _inputs(trial, mesh))
    if name in choice.KERNELS:
      found.append(max(compared(norm_errors, _rows(trial, mesh))))
  except Exception as error:  # Of a compiler, a driver or a kernel: of any type.
    return f"fails ({cut(' '.join(str(error).split()))})"
  names = _ARRAYS if trial.gradients else (_ARRAYS[0], _ARRAYS[-1])
  worst = max(range(len(found)), key=lambda i: found[i] if found[i] == found[i] else jnp.inf)
  if found[worst] <= TOLERANCE:
    return None
  return (
    f"differs from plain attention by {found[worst]:.2g} of the norm of its {names[worst]}"
    f" (allowed: {TOLERANCE:g})"
  )


def _inputs(trial, mesh) -> list[np.ndarray]:
  """Scaled queries, keys, values and a cotangent of the output; one example a device."""
  T, K, G, H = trial[:4]
  rng, B = np.random.default_rng(0), mesh_lib.batch_devices(mesh)
  shapes = [(B, T, K, G, H), (B, T, K, H), (B, T, K, H), (B, T, K, G, H)]
  q, *rest = (rng.normal(size=shape) for shape in shapes)
  return [a.astype(jnp.dtype(trial.dtype)) for a in (q * H**-0.5, *rest)]


def errors(name: str, trial: Trial, mesh: Any, arrays: list[jax.Array]) -> list[jax.Array]:
  """Norms of the differences of output and gradients, relative to plain attention in float32."""
  B, T = arrays[0].shape[:2]
  visible = _visible(B, T, trial.some_invalid) if trial.masked else None

  def both(arrays, **how):
    q, k, v, dout = arrays
    attend = functools.partial(attention.dot_product, visible=visible, softcap=trial.softcap, **how)
    if not trial.gradients:
      return [attend(q, k, v).astype(jnp.float32)]
    out, pull = jax.vjp(lambda *qkv: attend(*qkv), q, k, v)
    return [a.astype(jnp.float32) for a in (out, *pull(dout.astype(out.dtype)))]

  constrain = mesh_lib.batch_constraint(mesh)
  score_dtype = "float32" if trial.masked else trial.dtype
  ours = both(arrays, implementation=name, score_dtype=score_dtype, constrain=constrain)
  with jax.default_matmul_precision("highest"):
    right = both([a.astype(jnp.float32) for a in arrays], implementation=choice.PLAIN)
  return [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in zip(ours, right, strict=True)]


def _rows(trial, mesh) -> list[np.ndarray]:
  """Residuals, a branch, the cotangents of the sum and of its norm; two vectors of scales."""
  rng, shape = np.random.default_rng(0), (mesh_lib.batch_devices(mesh), trial.T, trial.width)
  rows = [rng.normal(size=shape).astype(jnp.dtype(trial.dtype)) for _ in range(4)]
  return rows + [rng.normal(size=trial.width).astype(np.float32) for _ in range(2)]


def norm_errors(trial: Trial, mesh: Any, arrays: list[jax.Array]) -> list[jax.Array]:
  """As `errors`, of kernels/norms.py: results of a residual sum with norms, and gradients."""
  constrain = mesh_lib.batch_constraint(mesh)

  def both(arrays, *, kernels):
    x_BTD, branch_BTD, *cotangents, scale_D, more_D = arrays
    norm = residual.Norm(scale_D, None if trial.masked else more_D)
    post = residual.Norm(more_D, None) if trial.post else None
    how = dict(eps=1e-6, kernels=kernels, constrain=constrain)
    added = functools.partial(residual.added, **how)
    if not trial.gradients:
      return [a.astype(jnp.float32) for a in added(x_BTD, branch_BTD, post, norm)]
    results, pull = jax.vjp(added, x_BTD, branch_BTD, post, norm)
    found = (*results, *pull(tuple(cotangents)))
    return [a.astype(jnp.float32) for a in jax.tree.leaves(found)]

  right = both([a.astype(jnp.float32) for a in arrays], kernels=False)
  ours = both(arrays, kernels=True)
  return [jnp.linalg.norm(a - b) / jnp.linalg.norm(b) for a, b in zip(ours, right, strict=True)]


def _visible(B, T, some_invalid):
  """A prefix-LM; the first quarter of the keys are a masked image, if any."""
  t = jnp.arange(T)
  end_BT = jnp.broadcast_to(jnp.maximum(t + 1, T - T // 4), (B, T))
  return VisibleKeys(end_BT, jnp.broadcast_to(t >= T // 4, (B, T)) if some_invalid else None)
