"""How parameters of a checkpoint are stored for inference: all frozen, as they are or quantized."""

from pgjax.checkpoints import source as source_lib
from pgjax.errors import UserError
from pgjax.params import names as param_names
from pgjax.params import rules as param_rules


def frozen_rules(source: source_lib.Source, quantize: str | None) -> list[tuple[str, str]]:
  """For config.params: every leaf frozen as the checkpoint keeps it, or its matrices quantized.

  Adapters stay beside their matrix: folding them in would round it once more.
  """
  if quantize not in (None, *param_rules.QUANTIZED):
    raise UserError(f"--quantize={quantize} must be one of {', '.join(param_rules.QUANTIZED)}.")
  found = []
  for name, leaf in source.leaves.items():
    how = f"{leaf.dtype.name!r}"
    if leaf.scheme:
      how = f"{leaf.scheme.kind!r}, block={leaf.scheme.block}, double={leaf.scheme.double}"
    elif quantize:
      how = repr(quantize if param_names.matrix(name) else "bfloat16")
    spec = f"freeze({how})"
    if name in source.adapters:
      rule = source.adapters[name].rule
      fields = f"rank={rule.rank}, alpha={rule.alpha}, rslora={rule.rslora}"
      spec = f"lora({fields}, base={how})"
    found.append((name, spec))
  return found
