"""The columns that each type of evaluator reads and writes."""

# Columns that a row of predictions.jsonl keeps where pp leaves them; the report groups by them.
GROUP_COLUMNS = ("question_type", "answer_type", "type", "label")
