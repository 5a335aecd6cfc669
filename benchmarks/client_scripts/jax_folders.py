"""Both directions of a client that reads big_vision's .npz and saves checkpoint folders."""

import numpy as np


def both_ways(path, work, answers, save):
  """Writes the client's answers on pgjax's weights, then on changed ones that it saved itself.

  path, work: as in hf.py. answers: maps a file or folder to dict(logits, answers). save: writes
  nested weights into a new folder.
  """
  np.savez(work / "there.npz", **answers(path / "weights.npz"))
  rng, tree = np.random.default_rng(2), {}
  for name, array in np.load(path / "weights.npz").items():
    *parents, leaf = name.split("/")
    inside = tree
    for parent in parents:
      inside = inside.setdefault(parent, {})
    inside[leaf] = (array + 0.02 * rng.normal(size=array.shape)).astype(np.float32)
  save(tree, work / "saved")
  np.savez(work / "back.npz", **answers(work / "saved"))
