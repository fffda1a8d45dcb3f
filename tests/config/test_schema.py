"""The configuration: what is read, what is refused and in which words, and what it costs to import."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.common import numbers
from pipeline.common.errors import UserError
from pipeline.config import load as configuration
from pipeline.config.schema import Config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def loaded(*overrides: str) -> Config:
    return configuration.load(None, list(overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        loaded(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults() -> None:
    config = configuration.load(None)
    assert config == Config()
    assert (config.penalty.k, config.penalty.p) == (2, 6)
    assert (config.model.base_channels, config.model.kernel_size, config.model.elements) == (64, 4, 5)
    assert (config.data.image_size, config.data.crop) == (128, None)
    assert config.fusion.reading == "layerwise"
    assert config.fusion.mixture.endpoints == 0.2


def test_the_papers_file_is_the_paper() -> None:
    config = configuration.load(CONFIGS[0].parent / "paper.yaml")
    weights, adam, training = config.loss_weights, config.optimizer, config.training
    ours = (weights.adversarial, weights.content, weights.style, weights.reconstruction, weights.total_variation)
    assert ours == (1, 1e-6, 5e-5, 30, 1)
    assert (adam.learning_rate, adam.beta1, adam.beta2) == (1e-3, 0.9, 0.999)
    assert (training.global_batch_size, config.data.image_size, config.data.split) == (100, 128, "auto")
    assert (config.model.base_channels, config.model.elements) == (64, 5)
    assert (config.model.discriminator_norm, config.model.discriminator_output_gain) == ("batch", 1)
    assert (config.perceptual.arch, config.perceptual.weights) == ("vgg19", "imagenet")
    assert (config.penalty.k, config.penalty.p, config.fusion.targets) == (2, 6, "ends")


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_shipped_files_load(path: Path) -> None:
    config = configuration.load(path)
    assert configuration.validate(config.as_dict(), "again") == config


def test_there_are_shipped_files() -> None:
    assert {"paper.yaml", "default.yaml", "demo.yaml"} <= {path.name for path in CONFIGS}


def test_file_then_overrides(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 3\ntraining:\n  fusion_steps: 7\n  pretrain_steps: 9\n")
    config = configuration.load(path, ["training.fusion_steps=8", "data.image_size=64", "seed=4", "seed=5"])
    assert (config.seed, config.training.fusion_steps, config.training.pretrain_steps) == (5, 8, 9)
    assert config.data.image_size == 64 and config.data.workers == Config().data.workers
    assert path.read_text().startswith("seed: 3")


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert configuration.load(tmp_path / "a.yaml") == Config()


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optimizer.learning_rate=1e-4", "optimizer", "learning_rate", 1e-4),
        ("optimizer.learning_rate=2.5E-3", "optimizer", "learning_rate", 2.5e-3),
        ("training.mixed_precision=no", "training", "mixed_precision", "no"),
        ("speed.compile=no", "speed", "compile", "no"),
        ("training.mixed_precision=null", "training", "mixed_precision", None),
        ("training.mixed_precision=fp16", "training", "mixed_precision", "fp16"),
        ("data.horizontal_flip=false", "data", "horizontal_flip", False),
        ("data.crop=null", "data", "crop", None),
        ("data.split=0.1", "data", "split", "0.1"),
        ('data.split="0.1"', "data", "split", "0.1"),
        ("data.split=official", "data", "split", "official"),
        ("data.source=a=b", "data", "source", "a=b"),
        ("data.shards=/some/where", "data", "shards", Path("/some/where")),
        ("penalty={k: 1, p: 2}", "penalty", "k", 1.0),
        (" seed = 7", "", "seed", 7),
    ],
)
def test_overrides(override: str, section: str, key: str, value: object) -> None:
    config = loaded(override)
    assert getattr(getattr(config, section) if section else config, key) == value


def test_override_of_a_nested_section() -> None:
    mixture = loaded("fusion.mixture.single=0", "fusion.mixture.uniform=0.5").fusion.mixture
    assert (mixture.endpoints, mixture.coin_flips, mixture.single, mixture.uniform) == (0.2, 0.3, 0, 0.5)


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_malformed_overrides(override: str) -> None:
    assert refusal(override).startswith(f"--set {override}: expected key=value")


@pytest.mark.parametrize("override", ["seed={", "seed=2024-99-99", "seed=[1", "seed=0b_"])
def test_overrides_that_are_not_yaml(override: str) -> None:
    assert refusal(override) == f"--set {override}: the value is not valid YAML"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.fusion_step=3", "training.fusion_step: unknown key; did you mean fusion_steps?"),
        ("fusion.mixture.endpoint=1", "fusion.mixture.endpoint: unknown key; did you mean endpoints?"),
        ("zzz=1", "zzz: unknown key; known are: seed, run_dir, data"),
        ("data=5", "data: Input should be a valid dictionary"),
        ("run_dir=''", "run_dir: must name a folder (`.` is the present one), not ''"),
        ("run_dir=", "run_dir: Input is not a valid path"),
        ("data.shards=' '", "data.shards: must name a folder"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, not -1"),
        ("seed=4294967296", "seed: Input should be less than 4294967296"),
        ("data.workers=-1", "data.workers: Input should be greater than or equal to 0, not -1"),
        ("data.image_size=48", "data.image_size: 48 is not a power of two from 32 to 4096; try 64, 128 or 256"),
        ("data.image_size=8192", "data.image_size: 8192 is not a power of two from 32 to 4096"),
        ("model.base_channels=6400", "model.base_channels: "),
        ("data.image_size=16", "data.image_size: 16 is not a power of two"),
        ("data.image_size=64.5", "data.image_size: Input should be a valid integer"),
        ("model.kernel_size=3", "model.kernel_size: Input should be 4 or 5, not 3"),
        ("model.elements=0", "model.elements: Input should be greater than or equal to 1"),
        ("model.base_channels=0", "model.base_channels: Input should be greater than or equal to 1"),
        ("loss_weights.style=-1", "loss_weights.style: Input should be greater than or equal to 0"),
        ("loss_weights.style=inf", "loss_weights.style: Input should be a finite number"),
        ("loss_weights.style=.nan", "loss_weights.style: Input should be"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: Input should be greater than 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: Input should be a finite number"),
        ("optimizer.beta2=1", "optimizer.beta2: Input should be less than 1"),
        ("penalty.p=1", "penalty.p: Input should be greater than or equal to 2"),
        ("penalty.points=middle", "penalty.points: Input should be 'interpolate' or 'endpoints', not 'middle'"),
        ("training.mixed_precision=fp8", "training.mixed_precision: Input should be 'no', 'fp16' or 'bf16', not 'fp8'"),
        ("training.ema_decay=1", "training.ema_decay: Input should be less than 1"),
        ("training.global_batch_size=1", "training.global_batch_size: Input should be greater than or equal to 2"),
        ("training.micro_batch_size=5", "training.micro_batch_size: 5 does not divide global_batch_size 128; these"),
        ("tracking.keep_checkpoints=1", "tracking.keep_checkpoints: Input should be greater than or equal to 2"),
        ("fusion.mixture.uniform=0.5", "fusion.mixture.*: the shares add up to 1.2; they must add up to 1"),
        ("fusion.mixture.uniform=1.5", "fusion.mixture.uniform: Input should be less than or equal to 1"),
        ("model.elements=4", "fusion.reading: layerwise needs model.elements = 5, not 4"),
        ('loss_weights={"ssim": 1, "reconstruction": 0}', "loss_weights.ssim: needs loss_weights.reconstruction above"),
        ("fusion.reading=map", "fusion.map: is given if and only if"),
        ("fusion.map=[[1, 1, 1, 1, 1]]", "fusion.map: is given if and only if"),
    ],
)  # fmt: skip
def test_refusals(override: str, message: str) -> None:
    assert refusal(override).startswith(f"--set {override}: {message}")


def test_suggested_micro_batches_are_accepted() -> None:
    for size in (2, 6, 7, 96, 100):
        message = refusal(f"training.global_batch_size={size}", "training.micro_batch_size=64")
        suggested = message.split("these do: ")[1].split(", ")
        assert suggested
        for value in suggested:
            loaded(f"training.global_batch_size={size}", f"training.micro_batch_size={value}")


def test_who_is_to_blame(tmp_path: Path) -> None:
    """The override where it is wrong or makes the file wrong; else the file."""
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("training: {micro_batch_size: 16}\n")
    bad.write_text("seed: -1\n")
    for path, settings, blamed in (
        (good, ["data.workers=2", "seed=true"], "--set seed=true: seed: a number is wanted, not True"),
        (good, ["training={micro_batch_size: -1}"], "--set training={micro_batch_size: -1}: training.micro_batch_size"),
        (good, ["data.workers=2", "training.global_batch_size=20"], "--set data.workers=2 --set training.global_batch"),
        (bad, ["data.workers=2"], f"{bad}: seed: "),
        (bad, [], f"{bad}: seed: "),
    ):
        with pytest.raises(UserError) as caught:
            configuration.load(path, settings)
        assert str(caught.value).startswith(blamed), caught.value


def test_further_mistakes_are_counted() -> None:
    assert refusal("seed=-1", "data.workers=-1", "training.ema_decay=2").endswith("(and 2 more)")


def test_maps() -> None:
    reading = "fusion.reading=map"
    two = loaded(reading, "model.elements=2", "fusion.map=[[1, 0.5, 0, 0, 0], [0, 0.5, 1, 1, 1]]")
    assert two.fusion.map == [[1, 0.5, 0, 0, 0], [0, 0.5, 1, 1, 1]]
    assert loaded("fusion.reading=shared", "model.elements=3").model.elements == 3
    rows = "fusion.map=[[1, 1, 1, 1, 1]]"
    assert "must have 2 rows (elements) of 5 numbers" in refusal(reading, "model.elements=2", rows)
    assert "must have 1 rows" in refusal(reading, "model.elements=1", "fusion.map=[[1, 1, 1, 1]]")
    assert "every column must add up to 1" in refusal(reading, "model.elements=1", "fusion.map=[[1, 1, 0.9, 1, 1]]")
    assert refusal(reading, "model.elements=1", "fusion.map=[[1, 1, 2, 1, 1]]").startswith(
        "--set fusion.map=[[1, 1, 2, 1, 1]]: fusion.map.0.2:"
    )


def test_elements_fit_the_latent() -> None:
    shared = ("fusion.reading=shared", "model.base_channels=1")
    assert loaded(*shared, "model.elements=16").model.elements == 16
    assert refusal(*shared, "model.elements=17").startswith("--set model.elements=17: model.elements: 17 is more than")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1", "not valid YAML"),
        (
            b"training: {pretrain_steps: 3}\nseed: 1\ntraining: {fusion_steps: 3}",
            "not valid YAML: training is given twice",
        ),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"seed: 2024-99-99", "not valid YAML"),
        (b"seed: !!python/object:os.system {}", "not valid YAML"),
        (b"- 1\n- 2", "must hold sections and keys, not a list"),
        (b"[]", "must hold sections and keys, not a list"),
        (b"just text", "must hold sections and keys, not a str"),
        (b"1: 2", "1: Keys should be strings"),
        (b"data: {imagesize: 64}", "data.imagesize: unknown key; did you mean image_size?"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        configuration.load(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file or directory"):
        configuration.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        configuration.load(tmp_path)


def test_round_trip(tmp_path: Path) -> None:
    config = loaded(
        "training.mixed_precision=no", "data.split=0.1", "data.crop=150", "data.shards=/a/b", "penalty.k=1e-7",
        "model.elements=1", "fusion.reading=map", "fusion.map=[[1, 1, 1, 1, 1]]", "run_dir=some where",
    )  # fmt: skip
    (tmp_path / "a.yaml").write_text(configuration.dump(config))
    again = configuration.load(tmp_path / "a.yaml")
    assert again == config and configuration.dump(again) == configuration.dump(config)
    assert yaml.safe_load(configuration.dump(config)) == config.as_dict()


def test_shards_folder() -> None:
    assert loaded("run_dir=x").shards_dir == Path("x/shards")
    assert loaded("run_dir=x", "data.shards=y").shards_dir == Path("y")


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().data.workers = 3


@pytest.mark.parametrize(
    "module", ["pipeline", "pipeline.config.schema", "pipeline.cli.app", "pipeline.data.loading.order"]
)
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'torchvision', 'accelerate'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == ""


def test_divisors() -> None:
    assert numbers.divisors(12) == [1, 2, 3, 4, 6, 12] and numbers.divisors(7) == [1, 7]


def test_what_earlier_versions_stored_still_loads() -> None:
    stored = Config().as_dict()
    stored["data"] |= {"cache": "device", "cache_dir": None}
    assert configuration.validate_stored(stored, "config.json") == Config()
    with pytest.raises(UserError, match=r"mine.yaml: data.cache: unknown key"):
        configuration.validate(stored, "mine.yaml")
    with pytest.raises(UserError, match=r"config.json"):
        configuration.validate_stored([], "config.json")


def test_the_page_of_the_configuration_is_current() -> None:
    """And every key has its meaning: `python docs/configuration.py > docs/configuration.md` after a change."""
    folder = REPOSITORY / "docs"
    made = subprocess.run(
        [sys.executable, folder / "configuration.py"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert (folder / "configuration.md").read_text(encoding="utf-8") == made
    assert made.count("\n| `") > 70 and "|  |\n" not in made
