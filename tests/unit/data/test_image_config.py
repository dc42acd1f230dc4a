"""The settings of an image processor as transformers reads them, and the limits of a config in their place."""

import json

import numpy as np
import pytest

from mtjudge_jax.config import DataConfig
from mtjudge_jax.data.image_config import ImageConfig, configured, exported_limits, load_image_config
from mtjudge_jax.data.images import patchify
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.tasks.custom import custom_task

QWEN = ImageConfig(16, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)  # Qwen3-VL's published configuration
DEMO = QWEN._replace(min_pixels=9216, max_pixels=9216)


def write_config(folder, **changes):
    config = {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config | changes))


def test_load_image_config(tmp_path):
    write_config(tmp_path)
    assert load_image_config(tmp_path) == QWEN
    write_config(tmp_path, min_pixels=1024, max_pixels=4096)  # the older names, which win as in transformers
    assert load_image_config(tmp_path) == QWEN._replace(min_pixels=1024, max_pixels=4096)
    write_config(tmp_path, image_mean=[0.1, 0.2, 0.3])
    assert load_image_config(tmp_path).mean == (0.1, 0.2, 0.3)
    assert QWEN.factor == 32 and QWEN.patch_dim == 768


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"resample": 2}, "resample is 2, only 3"),
        ({"do_resize": False}, "do_resize is False"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge <= longest_edge"),
        ({"size": {"shortest_edge": 200, "longest_edge": 100}}, "not 200 and 100"),
    ],
)
def test_load_image_config_refuses(tmp_path, changes, message):
    write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_image_config(tmp_path)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"size": None}, "not None and None"),
        ({"size": 224}, "not None and None"),
        ({"min_pixels": 0}, "not 0 and 16777216"),
        ({"size": {"shortest_edge": "a", "longest_edge": "b"}}, "not a and b"),
        ({"rescale_factor": None}, "rescale_factor is None, only 1/255"),
        ({"image_mean": None}, "image_mean missing"),
        ({"image_std": [0.5, 0.5]}, "image_std is .0.5, 0.5., it must be three numbers"),
        ({"image_processor_type": "SiglipImageProcessor"}, "image_processor_type is SiglipImageProcessor"),
    ],
)
def test_odd_settings_are_refused_in_one_line(tmp_path, changes, message):
    write_config(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_image_config(tmp_path)
    assert "preprocessor_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_the_settings_are_those_that_transformers_reads(tmp_path):
    """`image_processor` of processor_config.json before preprocessor_config.json, as transformers 5 saves and reads them."""
    from transformers import Qwen2VLImageProcessorPil

    def check(**sizes):
        theirs, ours = Qwen2VLImageProcessorPil.from_pretrained(tmp_path), load_image_config(tmp_path)
        assert (ours.min_pixels, ours.max_pixels) == (sizes["low"], sizes["high"])
        assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (sizes["low"], sizes["high"])
        assert (ours.patch, ours.merge) == (theirs.patch_size, theirs.merge_size) == (16, 2)
        for height, width in ((40, 60), (300, 200), (96, 97)):
            grid = theirs(np.zeros((height, width, 3), np.uint8))["image_grid_thw"][0].tolist()
            assert [1, *patchify(np.zeros((height, width, 3), np.uint8), ours).grid] == grid

    write_config(tmp_path, size={"shortest_edge": 4096, "longest_edge": 4096}, image_mean=0.5)
    nested = json.loads((tmp_path / "preprocessor_config.json").read_text())
    both = {"processor_class": "Qwen3VLProcessor", "image_processor": nested}
    (tmp_path / "processor_config.json").write_text(json.dumps(both))
    (tmp_path / "preprocessor_config.json").unlink()
    check(low=4096, high=4096)  # alone
    write_config(tmp_path, size={"shortest_edge": 9216, "longest_edge": 9216})
    check(low=4096, high=4096)  # both, and they disagree
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Qwen3VLProcessor"}')
    check(low=9216, high=9216)  # as older versions wrote it
    (tmp_path / "processor_config.json").write_text('{"image_processor": null}')
    check(low=9216, high=9216)
    write_config(tmp_path, min_pixels=1024)
    check(low=1024, high=16777216)


def test_a_missing_image_processor_names_both_files(tmp_path):
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json and no processor_config\.json: copy one of them from"):
        load_image_config(tmp_path)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no preprocessor_config\.json and processor_config\.json without image_processor: copy"):
        load_image_config(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": [1]}')
    with pytest.raises(UserError, match=r"processor_config\.json: image_processor holds a list instead of an object"):
        load_image_config(tmp_path)


def data(**fields) -> DataConfig:
    return DataConfig(**fields)


def test_limits_of_the_config_replace_those_of_the_folder():
    assert configured(QWEN, data()) == QWEN
    assert configured(QWEN, data(max_pixels=500_000)) == QWEN._replace(max_pixels=500_000)
    assert configured(QWEN, data(max_pixels=50_000)) == QWEN._replace(min_pixels=50_000, max_pixels=50_000)
    assert configured(DEMO, data(min_pixels=20_000)) == DEMO._replace(min_pixels=20_000, max_pixels=20_000)
    with pytest.raises(
        ConfigError, match=r"data\.max_pixels = 1000 is less than one image token, 32 x 32 pixels: give at least 1024"
    ):
        configured(QWEN, data(max_pixels=1000))
    with pytest.raises(ConfigError, match=r"data\.min_pixels = 9000 is above data\.max_pixels = 8000: take a smaller one"):
        configured(QWEN, data(min_pixels=9000, max_pixels=8000))
    small = custom_task({"name": "small", "kind": "binary", "question": "Is it?", "max_pixels": 100}, ())
    with pytest.raises(ConfigError, match=r"data\.custom_tasks: 'small': max_pixels = 100 is less than one image token"):
        configured(QWEN, data(), [small])


def test_an_export_has_the_limits_of_a_single_picture():
    assert exported_limits(QWEN, 4096) == (65_536, 1_048_576) and exported_limits(QWEN, 80_000) == (65_536, 16_777_216)
    assert exported_limits(QWEN, 36) == (65_536, 16_777_216)  # no room for a picture: of a run on texts
    assert exported_limits(DEMO, 36) == (9216, 9216)
