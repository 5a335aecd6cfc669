"""Names, shapes and rules of a model's parameters under a config. Nothing is allocated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from pgjax.models import paligemma
from pgjax.params import rules as param_rules, storage, tree as param_tree


def example_shapes(config):
  """(image, text) of a batch of one, abstract."""
  images = (config.num_frames,) if config.num_frames else ()
  image = jax.ShapeDtypeStruct((1, *images, config.res, config.res, 3), jnp.float32)
  return image, jax.ShapeDtypeStruct((1, config.text_len), jnp.int32)


def param_shapes(model, res: int) -> dict[str, tuple[int, ...]]:
  """{name: shape} of all parameters, for images of that size."""
  return dict(_param_shapes(model.img_config, model.llm_config, model.dtype, res))


@functools.lru_cache(maxsize=16)  # It traces the whole model, and a run calls it several times.
def _param_shapes(img, llm, dtype, res):
  img, llm = (dict(dataclasses.asdict(sizes), variant="of these sizes") for sizes in (img, llm))
  model = paligemma.Model(img=img, llm=llm, dtype=dtype)
  image = jax.ShapeDtypeStruct((1, res, res, 3), jnp.float32)
  text = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  tree = jax.eval_shape(model.init, jax.random.key(0), image, text, text)["params"]
  return {name: leaf.shape for name, leaf in param_tree.flatten(tree).items()}


def stored_params(model, config) -> storage.StoredParams:
  """How each parameter is stored: config.params applied to the model's names."""
  return storage.of(param_shapes(model, config.res), config.params, model.dtype)


def rules(model, config) -> dict[str, param_rules.Rule]:
  """The rule of each parameter."""
  return stored_params(model, config).rules


def trained_shapes(model, config) -> dict[str, jax.ShapeDtypeStruct]:
  """The optimizer's parameters as they are stored: names, shapes and dtypes."""
  leaves = stored_params(model, config)
  return param_tree.split(leaves.abstract(), param_rules.trained_names(leaves.rules))[0]
