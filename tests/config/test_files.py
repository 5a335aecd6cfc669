import functools
import importlib
import pathlib
import tempfile

import jax
import ml_collections
import pytest

from configs import common, published
from pgjax.config import durations, load as config_load, schema, validate as config_validate
from pgjax.data import tokenizer
from pgjax.data.pp import parse
from pgjax.distributed import mesh as mesh_lib
from pgjax.errors import UserError
from pgjax.formats import seg_vae_npz
from pgjax.models import gemma, paligemma, seg_vae, siglip
from pgjax.params import of_model, rules as param_rules, tree as param_tree
from pgjax.training import optimizer, state as train_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ("common.py", "published.py", "transfer.py")
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name not in SHARED)
SPECS = [
  *("easyvqa.py", "easyvqa.py:preset=long"),
  *("chartqa.py", "chartqa.py:res=448,size=10b,tune=attention", "chartqa.py:size=28b,tune=no_vit"),
  *("chartqa.py:variant=tiny,parts=augmented,batch_size=8", "chartqa.py:final_split,parts=human"),
  *("forkme.py", "forkme.py:size=v1,tune=decoder,prompt=caption en", "forkme.py:variant=tiny,val="),
  "forkme.py:tune=connector",
  *("detect.py", "detect.py:variant=tiny,classes=cat+guinea pig,order=area,tune=lora"),
  "detect.py:variant=tiny,train=a/_annotations.train.jsonl,val=a/_annotations.valid.jsonl",
  *("detect.py:train=yolo:a.yaml,val=voc:b,num_boxes=9", "segment.py:variant=tiny,masks=MASKS"),
  *("extract.py:tune=qlora", "extract.py:tune=no_vit,beams=1,meteor=true", "colab.py"),
  *("chartqa_blog.py", "sprites.py", "intersections.py:variant=tiny"),
  *(f"forkme.py:tune={name}" for name in common.TUNE if "lora" in name),
]


@functools.cache
def mask_weights():
  """A small random VQ-VAE in a file."""
  path = pathlib.Path(tempfile.mkdtemp()) / "masks.npz"
  seg_vae_npz.save(path, seg_vae.init(jax.random.key(0), width=8, embed_dim=8))
  return str(path)


def built(spec, **overrides):
  spec = spec.replace("MASKS", mask_weights()) if "MASKS" in spec else spec
  return config_validate.validated(config_load.load(str(ROOT / "configs" / spec), overrides))


def test_every_config_is_tried_below():
  tried = {spec.partition(":")[0] for spec in SPECS}
  files = {path.name for path in FILES}
  files -= {f"{name}.py" for name in published.RESULTS} - tried  # test_transfers.py has them.
  assert files - tried == set(), "SPECS has no case of these configs"
  assert tried - files == set(), "SPECS names configs that are not in the folder"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_config_fits_a_page_and_shows_its_command(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 40
  assert f"--config=configs/{path.name}" in text.split('"""')[1]


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_is_valid_and_traces(spec):
  """Model, what trains, optimizer, shardings and ops fit together; no weight is allocated."""
  c = built(spec)
  total = durations.total_steps(c, 10_000)
  model = paligemma.Model(**c.model)
  rules = of_model.rules(model, c)
  tx = optimizer.make(c, total, param_rules.trained_names(rules))
  mesh = mesh_lib.make_mesh(c.mesh, jax.devices())
  state = train_state.abstract_state(model, tx, c, mesh)
  assert set(param_tree.flatten(state.params)) >= {
    n for n in rules if rules[n].dtype not in param_rules.QUANTIZED
  }
  tiny = tokenizer.load("tiny")
  if c.tokenizer == "tiny":
    assert model.llm_config.vocab_size == tiny.vocab_size
  for pp in (c.input.pp, *(entry.pp for entry in c.evals.values())):
    parse.parse(pp, tokenizer=tiny)


@pytest.mark.parametrize("spec", SPECS)
def test_the_true_answer_is_no_part_of_a_prompt(spec):
  for entry in built(spec).evals.values():
    if entry.type != "perplexity":
      example = dict(image=None, question="what?", prefix="say", answer="secret", suffix="secret")
      example |= {"classes": "cat", "query": "what?", entry.answer: "secret"}
      text_ops = "|".join(op for op in entry.pp.split("|") if "keep" in op or "prefix" in op)
      got = parse.parse(text_ops, tokenizer=None)(example)
      assert "secret" not in got["prefix"]
      assert "answer_start" not in got
      if entry.type not in ("detection", "instances"):  # Which compare boxes.
        assert got[entry.answer] == "secret"


def test_the_published_settings():
  c = built("chartqa.py:res=448")
  assert (c.lr, c.wd, c.total_epochs, c.label_smoothing) == (1e-5, 1e-6, 30, 0.2)
  assert (c.input.batch_size, c.text_len, c.model.llm.dropout) == (256, 48, 0.1)
  assert (c.model_init, c.model.llm.variant) == ("pt_448", "gemma_2b")
  assert c.input.data.to_dict() == {
    "chartqa/human": 7398,
    "chartqa/augmented": 20901,
    "split": "train",
  }
  assert len(c.evals) == 12
  c = built("forkme.py")
  assert (c.lr, c.wd, c.total_epochs, c.input.batch_size) == (1e-5, 3e-7, 15, 32)
  assert (c.model_init, c.model.llm.final_logits_softcap) == ("pt_3b_224", 0.0)


LORA = "adapters"
TRAINED = dict(
  full={"img/embedding", "img/Transformer", "img/pos_embedding", "img/head", "llm"},
  no_vit={"img/head", "llm"},
  decoder={"llm"},
  connector={"img/head"},
  attention={"llm"},
  lora={LORA},
  lora_connector={LORA, "img/head"},
  lora_vit={LORA},
  qlora={LORA},
  qlora8={LORA},
)


@pytest.mark.parametrize("tune", common.TUNE)
def test_what_a_preset_trains(tune):
  c = built(f"forkme.py:tune={tune}")
  rules = of_model.rules(paligemma.Model(**c.model), c)
  trained = [name for name, rule in rules.items() if rule.kind == "train"]
  parts = {n.split("/")[0] if n[:3] == "llm" else "/".join(n.split("/")[:2]) for n in trained}
  adapted = {name: rule for name, rule in rules.items() if rule.kind == "lora"}
  assert parts | ({LORA} if adapted else set()) == TRAINED[tune]
  if adapted:
    assert c.lr == 10 * built("forkme.py").lr
    assert {rule.dtype for rule in adapted.values()} == {
      {"qlora": "nf4", "qlora8": "int8"}.get(tune, "bfloat16")
    }
    matrices = {f"attn/{n}/w" for n in ("q_einsum", "kv_einsum", "attn_vec_einsum")}
    matrices |= {"mlp/gating_einsum", "mlp/linear"}
    assert {n for n in adapted if n[:3] == "llm"} == {f"llm/layers/{n}" for n in matrices}
    assert any(n[:3] == "img" for n in adapted) == (tune == "lora_vit")
  if tune == "attention":
    assert all(name.startswith("llm/layers/attn/") for name in trained)
    assert rules["llm/embedder/input_embedding"].dtype == "bfloat16"
    assert (c.optax_name, c.lr, c.wd, c.grad_clip_norm) == ("big_vision.sgd", 0.03, 0.0, None)


def test_base_has_every_field_of_the_schema_and_no_other():
  c = common.base()
  units = ("_steps", "_epochs", "_examples", "_percent")
  no_unit = {name for name in schema.RUN if not name.endswith(units)}
  assert {name for name in c if not name.endswith(units)} == no_unit
  assert {*c.input, "data", "pp"} == set(schema.INPUT)
  evals = {name for name in schema.EVAL if not name.endswith(units)}
  assert {*common.EVAL, "data", "pp"} == evals


def test_the_towers_fields_are_the_models():
  assert set(schema.IMG) == {"variant", *siglip.Config.__dataclass_fields__}
  assert set(schema.LLM) == {"variant", *gemma.Config.__dataclass_fields__}


def test_parse_arg_knows_only_its_defaults():
  parsed = common.parse_arg("b=2,flag,name=x=y", a=1, b=0.5, flag=False, name="")
  assert isinstance(parsed, ml_collections.ConfigDict)
  assert parsed.to_dict() == dict(a=1, b=2.0, flag=True, name="x=y")
  assert common.parse_arg(None, a=1).a == 1
  with pytest.raises(ValueError, match="takes no argument 'c'"):
    common.parse_arg("c=1", a=1)


def test_configs_can_be_read_from_another_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  mine = tmp_path / "mine.py"
  mine.write_text((ROOT / "configs" / "forkme.py").read_text())
  assert config_validate.validated(config_load.load("mine.py:batch_size=3")).input.batch_size == 3
  assert importlib.import_module("configs.common") is common


def test_the_default_tokenizer_may_be_beside_the_weights(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"'tokenizer\.model' cannot be read"):
    tokenizer.load(built("forkme.py").tokenizer)
  (tmp_path / "tokenizer.model").write_bytes(tokenizer.TINY.read_bytes())
  monkeypatch.setenv("PGJAX_WEIGHTS_DIR", str(tmp_path))
  assert tokenizer.load(built("forkme.py").tokenizer).vocab_size == common.TINY_VOCAB_SIZE


def test_all_prompts_of_boxes_name_the_classes_of_the_training_file():
  c = built("detect.py:train=a.json,val=b.json,images=c")
  assert c.input.data.to_dict() == dict(name="coco", images="c", fname="a.json")
  for entry in c.evals.values():
    assert entry.data.to_dict() == dict(
      name="coco", images="c", fname="b.json", classes_from="a.json"
    )
  c = built("detect.py:train=a.jsonl,val=b.json")
  assert "classes_from" not in c.evals.val.data
  c = built("detect.py:train=a.json,val=b.jsonl,images=c")
  assert c.evals.val.data.to_dict() == dict(name="jsonl", root="c", fname="b.jsonl")
  with pytest.raises(UserError, match="classes= is for files of boxes"):
    built("detect.py:train=a.jsonl,val=,classes=cat")
