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


@functools.lru_cache(maxsize=16)
def _param_shapes(img, llm, dtype, res):
  tree = jax.eval_shape(_init_of(img, llm, dtype), *_init_arguments(res))
  return {name: leaf.shape for name, leaf in param_tree.flatten(tree).items()}


def init_of(model, res: int):
  """(function, abstract key and inputs): it makes all parameters, at random.

  The function is the same object for the same sizes, so that JAX traces the model once.
  """
  return _init_of(model.img_config, model.llm_config, model.dtype), _init_arguments(res)


@functools.lru_cache(maxsize=16)
def _init_of(img, llm, dtype):
  img, llm = (dict(dataclasses.asdict(sizes), variant="of these sizes") for sizes in (img, llm))
  model = paligemma.Model(img=img, llm=llm, dtype=dtype)

  def init(key, image, text):
    return model.init(key, image, text, text)["params"]

  return init


def _init_arguments(res):
  image = jax.ShapeDtypeStruct((1, res, res, 3), jnp.float32)
  return jax.eval_shape(jax.random.key, 0), image, jax.ShapeDtypeStruct((1, 1), jnp.int32)


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
