"""The parameters of a model under a config: names, shapes, rules. Nothing is allocated."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.models import paligemma
from pgjax.params import rules as param_rules
from pgjax.params import storage
from pgjax.params import tree as param_tree


def example_shapes(config, text_len=None):
  """(image, text) of a batch of one, abstract."""
  images = (config.num_frames,) if config.num_frames else ()
  image = jax.ShapeDtypeStruct((1, *images, config.res, config.res, 3), jnp.float32)
  return image, jax.ShapeDtypeStruct((1, text_len or config.text_len), jnp.int32)


def param_shapes(model, config):
  """Names and shapes of all parameters as a nested dict of float32 ShapeDtypeStructs."""
  image, _ = example_shapes(config)
  return _param_shapes(model.img_config, model.llm_config, model.dtype, image.shape)


@functools.lru_cache(maxsize=16)  # A whole model is traced for it, and a run asks several times.
def _param_shapes(img, llm, dtype, image_shape):
  model = paligemma.Model(
    img=dict(dataclasses.asdict(img), variant="of these sizes"),
    llm=dict(dataclasses.asdict(llm), variant="of these sizes"),
    dtype=dtype,
  )
  image, text = (
    jax.ShapeDtypeStruct(image_shape, jnp.float32),
    jax.ShapeDtypeStruct((1, 1), jnp.int32),
  )
  return jax.eval_shape(model.init, jax.random.key(0), image, text, text)["params"]


def stored_params(model, config) -> storage.StoredParams:
  """What happens to each parameter: the config's list applied to the model's names."""
  shapes = param_tree.flatten(param_shapes(model, config))
  shapes = {name: leaf.shape for name, leaf in shapes.items()}
  return storage.of(shapes, config.params, model.dtype)


def rules(model, config) -> dict[str, param_rules.Rule]:
  """The rule of each parameter."""
  return stored_params(model, config).rules


def trained_shapes(model, config) -> dict[str, jax.ShapeDtypeStruct]:
  """What the optimizer sees, as it is stored: names, shapes and dtypes."""
  leaves = stored_params(model, config)
  return param_tree.split(leaves.abstract(), param_rules.trained_names(leaves.rules))[0]


def model_shapes(model: Mapping[str, Any], res: int) -> dict[str, tuple[int, ...]]:
  """{our name: shape} of the model with these fields; nothing is allocated."""
  module = paligemma.Model(img=dict(model["img"]), llm=dict(model["llm"]))
  image = jax.ShapeDtypeStruct((1, res, res, 3), "float32")
  text = jax.ShapeDtypeStruct((1, 1), "int32")
  tree = jax.eval_shape(module.init, jax.random.key(0), image, text, text)["params"]
  return {name: leaf.shape for name, leaf in param_tree.flatten(tree).items()}
