"""Trains pgjax/data/tiny_tokenizer.model. It ran once; the file is in git.

A SentencePiece model of 640 pieces with Gemma's conventions (ids of pad, eos, bos, unk; a newline
is one piece; no dummy prefix, no normalisation, digits split, bytes instead of unknown pieces), so
that small models need no download. The corpus: questions and answers of the easy-VQA package and,
if the folder is given, of ChartQA's training split.

python benchmarks/make_tiny_tokenizer.py [CHARTQA_DIR]
"""

import io
import json
import pathlib
import string
import sys

import easy_vqa
import sentencepiece

NUM_PIECES = 640  # With 1,024 + 128 location and segmentation pieces: 1,792 = 14 * 128.
MODEL = pathlib.Path(__file__).parents[1] / "pgjax" / "data" / "tiny_tokenizer.model"


def corpus(chartqa_dir: str | None) -> list[str]:
  """Lines of ASCII text; easy-VQA's are repeated, so that its words become pieces."""
  questions, answers, _ = easy_vqa.get_train_questions()
  lines = 100 * sorted(set(questions)) + 500 * sorted(set(answers))
  if chartqa_dir:
    for path in sorted(pathlib.Path(chartqa_dir).glob("train/*.json")):
      for row in json.loads(path.read_text()):
        lines += [row["query"], row["label"]]
  return [line for line in lines if line.isascii()]


def main(chartqa_dir: str | None = None):
  """Trains the model and writes it into the package."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus(chartqa_dir)),
    model_writer=model,
    model_type="bpe",
    vocab_size=NUM_PIECES,
    byte_fallback=True,
    character_coverage=1.0,
    required_chars="".join(c for c in string.printable if c.isprintable() and c != " "),
    user_defined_symbols=["\n"],
    split_digits=True,
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    pad_piece="<pad>",
    eos_piece="<eos>",
    bos_piece="<bos>",
    num_threads=1,
    minloglevel=2,
  )
  MODEL.write_bytes(model.getvalue())


if __name__ == "__main__":
  main(*sys.argv[1:])
