"""What does a mesh split unevenly, or not at all, of this model? Sentences, before compilation.

A dimension that its axis does not divide is whole on every device: right, but not faster.
"""

from typing import Any

from pgjax.errors import UserError
from pgjax.layers import placement


def notes(model: Any, config: Any, mesh: Any) -> list[str]:
  """Raises if `tensor` or `sequence` would split nothing of the text tower."""
  tensor = placement.size_of(mesh, (placement.TENSOR,))
  sequence = placement.size_of(mesh, (placement.SEQUENCE,))
  return _of_tensor(model, tensor) + _of_sequence(model, config, sequence)


def _of_tensor(model, tensor) -> list[str]:
  llm, img = model.llm_config, model.img_config
  if tensor == 1:
    return []
  if llm.num_heads % tensor and llm.mlp_dim % tensor:
    raise UserError(
      f"config.mesh: tensor={tensor} divides neither the text tower's {llm.num_heads} heads nor its"
      f" mlp_dim={llm.mlp_dim}, so it would split nothing; take a divisor of {llm.num_heads}."
    )
  whole = f"tensor={tensor} does not divide"
  found = []
  if llm.num_heads % tensor:
    found.append(f"{whole} the text tower's {llm.num_heads} heads: its attention is computed whole")
  elif llm.num_kv_heads % tensor:
    copies = placement.copies_of_kv(tensor, llm.num_heads, llm.num_kv_heads)
    found.append(
      f"{whole} the {llm.num_kv_heads} key/value heads: there are {copies} copies of each, so that"
      " every device has those that its queries need; their weights are whole"
    )
  sizes = (
    (img.num_heads, f"the image tower's {img.num_heads} heads: its attention is computed whole"),
    (llm.mlp_dim, f"the text tower's mlp_dim={llm.mlp_dim}: its MLP is computed whole"),
    (img.mlp_dim, f"the image tower's mlp_dim={img.mlp_dim}: its MLP is computed whole"),
    (llm.vocab_size, f"the {llm.vocab_size} rows of the token table: it is not split over tensor"),
  )
  found += [f"{whole} {what}" for size, what in sizes if size % tensor]
  return [f"{sentence} on every device along tensor." for sentence in found]


def _of_sequence(model, config, sequence) -> list[str]:
  patch = model.img_config.patch_size
  patches = (config.res // patch[0]) * (config.res // patch[1])
  tokens = patches * max(1, config.num_frames) + config.text_len
  if sequence > tokens:
    raise UserError(
      f"config.mesh: sequence={sequence} is more than the {tokens} tokens of an example; take"
      " fewer."
    )
  found = []
  if patches % sequence:
    found.append(
      f"sequence={sequence} does not divide the {patches} patches of an image: the image tower is"
      " computed whole on every device along sequence."
    )
  if more := -tokens % sequence:
    found.append(
      f"sequence={sequence} does not divide the {tokens} tokens of image and text: {more} of"
      f" padding are added to each example; text_len={config.text_len + more} would use them."
    )
  return found
