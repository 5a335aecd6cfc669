"""Which dimension of a leaf do the devices along the mesh's axis `tensor` share?

Heads, key/value heads, the hidden numbers of an MLP and rows of the token table (Megatron-LM,
arXiv:1909.08053, section 3): then a layer's products need no other device's weights. A leaf's
optimizer state and adapter factors are split as it is.
"""

import re

from pgjax.params import names as param_names

_VISION = "img/Transformer/encoderblock/"
_ATTENTION = f"{_VISION}MultiHeadDotProductAttention_0/"
_AXES = {  # The axis in params.names.Matrix, or, of other leaves, the letter of all axes with it.
  "llm/embedder/input_embedding": ("V", "VD"),
  "llm/layers/attn/(q_einsum|attn_vec_einsum)/w": "N",
  "llm/layers/attn/q?kv_einsum/w": "K",
  "llm/layers/mlp/(gating_einsum|linear)": "F",
  f"{_ATTENTION}(query|key|value|out)/kernel": "N",
  f"{_ATTENTION}(query|key|value)/bias": ("N", "LNH"),
  f"{_VISION}MlpBlock_0/Dense_0/kernel": "F",
  f"{_VISION}MlpBlock_0/Dense_0/bias": ("F", "LF"),
  f"{_VISION}MlpBlock_0/Dense_1/kernel": "D",
}
_NAME = re.compile(r"(?:^|/)(lora/)?((?:llm|img)/.*)")
QUANTIZED_PARTS = ("nf4", "int8", "scale")


def of_leaf(name: str, ndim: int) -> int | None:
  """The dimension, of a leaf of the state such as "opt/0/mu/llm/layers/mlp/linear"; or None.

  Of a quantized matrix it is the one of the codes, which are gathered before they are decoded.
  """
  found = _NAME.search(name)
  if found is None:
    return None
  in_adapter, base = found.groups()
  if in_adapter:
    base, _, factor = base.rpartition("/")
  owner, _, part = base.rpartition("/")
  if part in QUANTIZED_PARTS and param_names.matrix(owner):
    return 1
  axis = next((axis for pattern, axis in _AXES.items() if re.fullmatch(pattern, base)), None)
  if axis is None:
    return None
  axis, axes = axis if isinstance(axis, tuple) else (axis, param_names.matrix(base).axes)
  if in_adapter:
    matrix = param_names.matrix(base)
    axes = matrix.shared + (f"{matrix.summed}R" if factor == "a" else f"R{matrix.new}")
  # A factored moment has fewer dimensions.
  return axes.index(axis) if axis in axes and len(axes) == ndim else None
