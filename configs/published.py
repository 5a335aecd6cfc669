"""Published test scores, as fractions: {data set: {score: {size: {resolution: mean}}}}.

PaliGemma 1 (v1): arXiv:2407.07726, table 1. PaliGemma 2 (3b, 10b, 28b): arXiv:2412.03555, table 13.
"""

RESULTS = {
  "chartqa/human": {
    "relaxed_acc": {
      "v1": {224: 0.400, 448: 0.542},
      "3b": {224: 0.420, 448: 0.540},
      "10b": {224: 0.484, 448: 0.664},
      "28b": {224: 0.468, 448: 0.613},
    }
  },
  "chartqa/augmented": {
    "relaxed_acc": {
      "v1": {224: 0.742, 448: 0.885},
      "3b": {224: 0.744, 448: 0.892},
      "10b": {224: 0.742, 448: 0.901},
      "28b": {224: 0.689, 448: 0.851},
    }
  },
}


def of(data_set, size, res):
  """{score: mean} of one model, for `published` of an entry of evals; empty if none is known."""
  means = {name: by.get(size, {}).get(res) for name, by in RESULTS.get(data_set, {}).items()}
  return {name: mean for name, mean in means.items() if mean is not None}
