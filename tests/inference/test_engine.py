import types

import numpy as np

from pgjax.data import loader as loader_lib, tokenizer
from pgjax.data.sources import memory
from pgjax.inference import engine
from pgjax.inference.decoder_cache import Settings


def test_a_prompt_is_answered_without_its_image_word_and_odd_ones_are_logged(caplog):
  image = np.zeros((5, 4, 3), np.uint8)
  prompts = ["<image>detect cat", "detect cat", "detect cat\n"]
  source = memory.InMemory(
    [dict(image=image, prefix=prompt) for prompt in prompts], ["first", "second", "third"]
  )
  questions = loader_lib.Loader(
    loader_lib.Part("questions", source, 1.0),
    "decode|resize(16)|value_range(-1, 1)",
    tokenizer.load("tiny"),
    loader_lib.Layout(16, 32, 0, for_training=False),
    0,
  )
  config = types.SimpleNamespace(num_frames=0)
  opened = engine.OpenCheckpoint(None, config, {}, None, "", None, 1, ())
  sizes = engine.check(opened, questions, Settings("greedy", 8, "boxes"))
  assert sizes == [(4, 5)] * 3
  first, second = questions(0, 0), questions(0, 1)
  assert first.columns["prefix"] == "detect cat"
  np.testing.assert_array_equal(first.arrays["text"], second.arrays["text"])
  assert "1 of 3 texts: the prompt begins with <image>, which is dropped" in caplog.text
  assert "such as in first" in caplog.text
  assert "third: the prompt ends with a newline" in caplog.text
