"""preprocessor_config.json and processor_config.json; transformers' pixels are in tests/parity."""

import json

import pytest

from pgjax.errors import UserError
from pgjax.huggingface import image_config
from pgjax.huggingface.image_config import Images

HUB = dict(
  do_convert_rgb=None,
  do_normalize=True,
  do_rescale=True,
  do_resize=True,
  image_mean=[0.5, 0.5, 0.5],
  image_processor_type="SiglipImageProcessor",
  image_seq_length=4,
  image_std=[0.5, 0.5, 0.5],
  processor_class="PaliGemmaProcessor",
  resample=3,
  rescale_factor=1 / 255,
  size=dict(height=32, width=32),
)


@pytest.fixture
def folder(tmp_path):
  def write(name="preprocessor_config.json", **fields):
    content = HUB | fields
    if name == "processor_config.json":
      content = dict(image_processor=content, processor_class="PaliGemmaProcessor")
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path

  return write


@pytest.mark.parametrize("name", image_config.FILES)
def test_the_resampling_of_both_files_is_read(folder, name):
  assert image_config.read(folder(name), 32).pp(32) == (
    'decode(precise=True)|resize(32, method="bicubic")|value_range(-1, 1)'
  )
  assert image_config.read(folder(name, resample=2), 32).pp(32) == (
    "decode(precise=True)|resize(32, antialias=True)|value_range(-1, 1)"
  )


def test_a_folder_without_the_files_says_nothing(tmp_path):
  assert image_config.read(tmp_path, 32) is None
  (tmp_path / "processor_config.json").write_text('{"processor_class": "PaliGemmaProcessor"}')
  assert image_config.read(tmp_path, 32) is None


@pytest.mark.parametrize(
  ("fields", "low", "high"),
  [
    (dict(do_normalize=False), 0, 1),
    (dict(do_normalize=False, do_rescale=False), 0, 255),
    (dict(image_mean=0.25, image_std=0.5), -0.5, 1.5),
    (dict(rescale_factor=1 / 127.5, image_mean=[1], image_std=[1]), -1, 1),
    (dict(image_mean=None, image_std=None, resample=None), -1, 1),  # The class's defaults.
  ],
)
def test_values_are_mapped_as_the_file_says(folder, fields, low, high):
  assert image_config.read(folder(**fields), 32)[:3] == ("bicubic", low, high)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(resample=0), r"resample is 0, .* not \(nearest\)"),
    (dict(resample=17), "resample is 17"),
    (dict(do_resize=False), "do_resize is False"),
    (dict(do_center_crop=True), "do_center_crop is True"),
    (dict(size=dict(height=64, width=64)), "size is .*the 32 x 32 of config.json"),
    (dict(size=dict(height=32, width=64)), "size is"),
    (dict(size=dict(shortest_edge=32)), "size is"),
    (dict(image_mean=[0.48, 0.45, 0.4]), "image_mean is .*one number for all channels"),
    (dict(image_std=0), "image_std is 0"),
    (dict(image_processor_type="CLIPImageProcessor"), "image_processor_type is 'CLIP"),
    (dict(resample="bicubic"), r"\$.resample"),
    (dict(image_mean=[]), r"\$.image_mean"),
  ],
)
def test_what_no_ops_do_is_refused_by_name(folder, fields, message):
  with pytest.raises(UserError, match=message) as error:
    image_config.read(folder(**fields), 32)
  assert "preprocessor_config.json" in str(error.value)
  assert "\n" not in str(error.value)


def test_files_that_disagree_are_named(folder):
  folder("processor_config.json", resample=2)
  with pytest.raises(UserError, match=r"preprocessor_config.json and .*processor_config.json pre"):
    image_config.read(folder(), 32)
  assert image_config.read(folder(resample=2), 32).method == "antialias"


def test_ops_become_settings_and_settings_ops():
  for images in (Images("bicubic"), Images("antialias"), Images("bicubic", 0.0, 1.0)):
    assert image_config.of_pp(images.pp(224), "x")[:3] == images[:3]
    precise = images._replace(precise=True)
    assert image_config.of_pp(precise.pp(224), "x").precise
    assert not image_config.of_pp(images.pp(224), "x").precise
  assert image_config.of_pp("decode|resize(8)|value_range(-1, 1)|keep('image')", "x").method == (
    "bilinear"
  )
  for unknown in ("decode", "decode|resize(8)", "resize(8)|value_range(0, 1, 5, 9)", "nonsense("):
    assert image_config.of_pp(unknown, "x") is None


@pytest.mark.parametrize("method", image_config.METHODS)
def test_a_method_replaces_that_of_every_resize(method):
  pp = 'decode|resize((8, 16), antialias=True, key="image")|flip_lr|value_range(-1, 1)'
  again = image_config.with_method(pp, method)
  resize = again.split("|")[1]
  assert resize == f"resize((8, 16){image_config.METHODS[method]}, key='image')"
  decode = "decode(precise=True)" if method == "bicubic" else "decode"
  assert again == f"{decode}|{resize}|flip_lr|value_range(-1, 1)"
  assert image_config.with_method(again, "bilinear").startswith("decode|")


def test_an_unknown_method_is_an_error():
  with pytest.raises(UserError, match="--resize=area must be one of bicubic, antialias, bilinear"):
    image_config.of_method("area")
  with pytest.raises(UserError, match="have no resize"):
    image_config.with_method("decode|value_range(-1, 1)", "bicubic")


def test_ops_that_differ_from_a_folder_are_reported_once(folder):
  read = lambda: image_config.read(folder())  # noqa: E731
  same, other = 'resize(32, method="bicubic")|value_range(-1, 1)', "resize(32)|value_range(-1, 1)"
  antialias = "decode|resize(32, antialias=True)|value_range(-1, 1)"
  assert image_config.differences(read, [same]) == []
  [note] = image_config.differences(read, [same, other, other])
  assert (
    'as decode(precise=True)|resize(res, method="bicubic")|value_range(-1, 1), and this config as'
    " decode(precise=True)|resize(res)" in note
  )
  [note] = image_config.differences(read, [f"decode|{same}"])
  assert note.count("precise=True") == 1
  assert image_config.differences(lambda: image_config.read(folder(resample=2)), [antialias]) == []
  [note] = image_config.differences(lambda: image_config.read(folder(resample=0)), [other])
  assert "resample is 0" in note
