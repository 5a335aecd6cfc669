"""Which rows of other programs' files are read as rows of pgjax?

Only those with one meaning: `file_name` or `images` for `image` (imagefolder, chat formats),
{"path": ...} for a file name (datasets.to_json), and a conversation of one question and one answer
(LLaVA's `conversations`, chat `messages`) for prefix and suffix. Others raise, with what to write.
"""

import collections
from typing import Any

from pgjax.data.sources.columns import Columns
from pgjax.errors import UserError

MULTI_TURN = ("refuse", "drop", "split")
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
_CHATS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_MARKER = "<image>"
_IMAGES = ("image", "image_url")  # Types of parts of a message.


class Adapter:
  """Rows of a file as rows of pgjax, with counts of what was read in another way.

  multi_turn, for conversations of several questions: "refuse" raises, "drop" leaves them out,
  "split" makes a row of each question with its answer, without what was said before.
  """

  def __init__(self, columns: Columns, multi_turn: str = "refuse"):
    if multi_turn not in MULTI_TURN:
      raise UserError(f"multi_turn={multi_turn!r} must be one of {', '.join(MULTI_TURN)}.")
    self._columns, self._multi_turn = columns, multi_turn
    self.notes: collections.Counter[str] = collections.Counter()
    self._seen = self._multi = 0
    self._refused: UserError | None = None

  def rows(self, row: dict[str, Any], where: str, key: str) -> list[dict[str, Any]]:
    """The rows that one of the file becomes; `key` identifies it if it has no id."""
    self._seen += 1
    row = dict(self._columns.applied(row, where))
    _image(row, self.notes, where)
    for name, (who, what) in _CHATS.items():
      if isinstance(row.get(name), list) and not {"prefix", "suffix"} & row.keys():
        return self._of_chat(row, name, _spoken(row[name], who, what), f"{where}: {name!r}", key)
    return [row]

  def check(self) -> None:
    """Raises if conversations of several questions were refused, with their number."""
    if self._refused is not None:
      raise UserError(
        f"{self._refused} There are {self._multi:,} such rows of {self._seen:,}; multi_turn='drop'"
        " leaves them out, and multi_turn='split' makes a row of each question."
      )

  @property
  def omitted(self) -> str:
    """What was left out; empty if nothing was."""
    dropped = self._multi if self._multi_turn == "drop" else 0
    return f"{dropped:,} conversations of several questions" if dropped else ""

  def _of_chat(self, row, name, spoken, where, key) -> list[dict[str, Any]]:
    pairs = _pairs(spoken)
    if pairs is None:
      raise _unreadable(where, spoken)
    if len(pairs) > 1:
      self._multi += 1
      if self._multi_turn == "refuse":
        self._refused = self._refused or _unreadable(where, spoken)
        return []
      if self._multi_turn == "drop":
        return []
    self.notes[f"prefix and suffix from {name!r}"] += len(pairs)
    texts = [_texts(pair, where) for pair in pairs]
    if len(pairs) == 1:
      return [row | texts[0]]
    return [row | text | {"id": f"{row.get('id', key)}#{k}"} for k, text in enumerate(texts)]


def _image(row: dict[str, Any], notes: collections.Counter, where: str) -> None:
  """Sets `image` from a column of another name."""
  for name in ("file_name", "images"):
    if row.get("image") is None and row.get(name) is not None:
      only = name == "images" and isinstance(row[name], list) and len(row[name]) == 1
      row["image"] = row[name][0] if only else row[name]
      notes[f"image from {name!r}"] += 1
  if row.get("image") is None and isinstance(row.get("video"), str):
    raise UserError(
      f"{where} names a video: read the file as dict(name='video', fname=..., num_frames=...)."
    )
  if row.get("image") is None and (images := _images_in(row.get("messages"))):
    row["image"] = images[0] if len(images) == 1 else images
    notes["image from 'messages'"] += 1


def _images_in(messages: Any) -> list:
  """The images inside chat messages: parts of the type image or image_url."""
  images = []
  for turn in messages if isinstance(messages, list) else ():
    content = turn.get("content") if isinstance(turn, dict) else None
    for part in content if isinstance(content, list) else ():
      if isinstance(part, dict) and part.get("type") in _IMAGES:
        value = part.get(part["type"])
        value = value.get("url") if isinstance(value, dict) and "url" in value else value
        images += [] if value is None else [value]
  return images


def _spoken(turns: list, who: str, what: str) -> list[tuple[Any, str | None]]:
  """(speaker, text) of each turn; None for what is no text."""
  return [
    (turn.get(who), _text(turn.get(what))) if isinstance(turn, dict) else (turn, None)
    for turn in turns
  ]


def _pairs(spoken: list) -> list[list[str]] | None:
  """[[question, answer], ...], of which the last may be without an answer; None for others."""
  pairs: list[list[str]] = []
  for speaker, text in spoken:
    asks, answers = speaker in _ASKS, speaker in _ANSWERS
    if text is None or not (asks or answers):
      return None
    if asks and (not pairs or len(pairs[-1]) == 2):
      pairs.append([text])
    elif answers and pairs and len(pairs[-1]) == 1:
      pairs[-1].append(text)
    else:
      return None
  return pairs or None


def _unreadable(where: str, spoken: list) -> UserError:
  return UserError(
    f"{where} has the turns {[speaker for speaker, _ in spoken]!r:.120}; a line is one question and"
    ' one answer: write {"image": "a.png", "prefix": "the question", "suffix": "the answer"}, and'
    " a line for each question of a longer conversation."
  )


def _texts(pair: list[str], where: str) -> dict[str, str]:
  question = pair[0].strip()
  while question.startswith(_MARKER) or question.endswith(_MARKER):
    question = question.removeprefix(_MARKER).removesuffix(_MARKER).strip()
  if _MARKER in question:
    raise UserError(
      f"{where} has {_MARKER} inside the question {question[:60]!r}; images come before the text:"
      " move it to the beginning."
    )
  return dict(zip(("prefix", "suffix"), (question, *pair[1:]), strict=False))


def _text(content: Any) -> str | None:
  """The text of a turn: of a text, or of a list of parts of which one is a text."""
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list) else []
  if not all(isinstance(part, dict) for part in parts):
    return None
  kinds = {part.get("type") for part in parts}
  texts = [part.get("text") for part in parts if part.get("type") not in _IMAGES]
  only = len(texts) == 1 and isinstance(texts[0], str) and kinds <= {"text", *_IMAGES}
  return texts[0] if only else None
