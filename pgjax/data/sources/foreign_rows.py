"""Which rows of other programs' JSONL files are read as rows of pgjax?

Only those with one meaning: `file_name` or `images` for `image` (imagefolder, chat formats),
{"path": ...} for a file name (datasets.to_json), and a conversation of one question and one answer
(LLaVA's `conversations`, chat `messages`) for prefix and suffix. Others raise, with what to write.
"""

from typing import Any

from pgjax.errors import UserError

_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
_CHATS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_MARKER = "<image>"


def adapted(row: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
  """The row with `image`, `prefix` and `suffix` as far as it has them, and what they come from."""
  row, notes = dict(row), []
  for name in ("file_name", "images"):
    if row.get("image") is None and row.get(name) is not None:
      only = name == "images" and isinstance(row[name], list) and len(row[name]) == 1
      row["image"] = row[name][0] if only else row[name]
      notes.append(f"image from {name!r}")
  images = row.get("image")
  if isinstance(images, dict):
    row["image"] = _path(images, where)
  elif isinstance(images, list):
    row["image"] = [_path(one, where) if isinstance(one, dict) else one for one in images]
  for name, (who, what) in _CHATS.items():
    if isinstance(row.get(name), list) and not {"prefix", "suffix"} & row.keys():
      row |= _question_and_answer(row[name], who, what, f"{where}: {name!r}")
      notes.append(f"prefix and suffix from {name!r}")
  return row, notes


def _path(image: dict[str, Any], where: str) -> Any:
  if image.get("bytes") is None and isinstance(image.get("path"), str):
    return image["path"]
  raise UserError(
    f"{where}: 'image' is an object with {', '.join(map(repr, image)) or 'nothing'}; store the"
    ' image in a file and write its name: {"image": "a.png", ...}.'
  )


def _question_and_answer(turns: list, who: str, what: str, where: str) -> dict[str, str]:
  """prefix, and suffix unless the conversation ends with the question."""
  spoken = [(turn.get(who), _text(turn.get(what))) for turn in turns if isinstance(turn, dict)]
  order = [
    "prefix" if speaker in _ASKS else "suffix" if speaker in _ANSWERS else speaker
    for speaker, text in spoken
    if text is not None
  ]
  if len(order) != len(turns) or order not in (["prefix"], ["prefix", "suffix"]):
    raise UserError(
      f"{where} has the turns {[speaker for speaker, _ in spoken]!r}; a line is one question and"
      ' one answer: write {"image": "a.png", "prefix": "the question", "suffix": "the answer"}, and'
      " a line for each question of a longer conversation."
    )
  texts = dict(zip(order, (text for _, text in spoken), strict=True))
  question = texts["prefix"].strip()
  while question.startswith(_MARKER) or question.endswith(_MARKER):
    question = question.removeprefix(_MARKER).removesuffix(_MARKER).strip()
  if _MARKER in question:
    raise UserError(
      f"{where} has {_MARKER} inside the question {question[:60]!r}; images come before the text:"
      " move it to the beginning."
    )
  return texts | dict(prefix=question)


def _text(content: Any) -> str | None:
  """The text of a turn: of a text, or of a list of parts of which one is a text."""
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list) else []
  texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("text")]
  kinds = {part.get("type") for part in parts if isinstance(part, dict)}
  only = len(texts) == 1 and isinstance(texts[0], str) and kinds <= {"text", "image", "image_url"}
  return texts[0] if only else None
